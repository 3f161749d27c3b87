"""Measured runs as the planner uses them: what was measured, and the curve that it is compared with."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property, lru_cache

import numpy as np

from planner.calibration.posterior import log_likelihood
from planner.calibration.similarity import Kind, Traits, traits_of
from planner.calibration.workspace_curve import PREFERRED, Curve
from planner.cards.lookup import Card, card_named, emulated_card, emulated_name
from planner.components import Scope
from planner.errors import UnknownCard
from planner.request import GenerationRequest

# The newest runs of equal traits, and of one request among them, that calibrate: more would add little and cost time.
NEWEST, NEWEST_OF_REQUEST = 50, 10
# Stages are reset at other moments than the whole's peak, which explains no more than this.
_REACHED = 0.99


# A name that the catalogue lacks is compared with all of its names, which takes time.
@lru_cache(maxsize=1024)
def model_of(card: str, total_bytes: int | None = None) -> str:
    """Give the catalogue's name of a GPU by any of its names and its memory, or that name."""
    try:
        return card_named(card, total_bytes).name
    except UnknownCard:
        return card


@dataclass(frozen=True, kw_only=True)
class Observation:
    """One measured run on a GPU. Bytes.

    `stages` are allocated peaks by stage, empty where only the whole is known.

    `peak_allocated_bytes` is None where only the reserved peak was published: such a run is graded, and calibrates
    nothing.
    `is_alone` says that it had the whole GPU, so that its end was the GPU's own: nobody else held memory of it, and no
    smaller capacity was emulated (`emulated_bytes`). `ended_in` is the stage or phase in which it was out of
    memory.
    """

    run_id: str
    created_at: str
    request: GenerationRequest
    scope: Scope = "pipeline"
    card: str
    capability: tuple[int, int]
    attention: str = "sdpa"
    cudnn: int | None = None
    versions: str
    kind: Kind
    peak_allocated_bytes: int | None
    peak_reserved_bytes: int | None = None
    context_bytes: int | None = None
    num_alloc_retries: int = 0
    stages: Mapping[str, int]
    ended_in: str | None = None
    is_alone: bool = True
    emulated_bytes: int | None = None
    total_bytes: int | None = None
    is_reference: bool = False

    @property
    def model(self) -> str:
        """Give the catalogue's name of its GPU, or the driver's where the catalogue has none."""
        return model_of(self.card, self.total_bytes)

    @property
    def card_name(self) -> str:
        """Give the catalogue's name of its GPU, and the capacity that was emulated on it, if one was."""
        return emulated_name(self.model, self.emulated_bytes)

    @cached_property
    def traits(self) -> Traits:
        """Give its similarity key."""
        return traits_of(self.request, self.capability, self.attention, self.cudnn, self.versions, self.scope)

    @cached_property
    def form(self) -> GenerationRequest:
        """Give the allocation form of its request."""
        return self.request.allocation_form()

    @cached_property
    def gpu(self) -> Card | None:
        """Give the catalogue's GPU that it ran on, with its emulated capacity.

        The value is None where the catalogue has none.
        """
        try:
            card = card_named(self.card, self.total_bytes)
        except UnknownCard:
            return None
        return card if self.emulated_bytes is None else emulated_card(card, self.emulated_bytes)

    def lacks_room_for(self, reserved_bytes: float) -> bool:
        """Tell whether its GPU cannot hold this much reserved memory and the CUDA context."""
        if self.scope != "pipeline" or self.gpu is None:
            return False
        return reserved_bytes + self.gpu.context_low_bytes > self.gpu.best_bytes


@dataclass(frozen=True, eq=False)
class Run:
    """A measured run without allocator retries, and the curve that its peaks are compared with.

    Of a half of the VAE alone, peaks and curve are above what was allocated before.
    """

    observation: Observation
    curve: Curve

    @cached_property
    def calibrates(self) -> bool:
        """Tell whether its peak tells something of kernels; other runs are graded alone.

        A reference run does not say whether the allocator had to retry: where its GPU's memory cannot hold what
        preferred kernels reserve, its peak is that of the memory, and tells nothing of the kernels.
        """
        one = self.observation
        is_capped = one.is_reference and one.lacks_room_for(float(self.curve.reserved[PREFERRED]))
        return one.peak_allocated_bytes is not None and not is_capped

    @cached_property
    def likelihoods(self) -> dict[str, np.ndarray]:
        """Compute the log-likelihood of each measured peak, by stage and ``reserved``.

        See `log_likelihood`.
        """
        one = self.observation
        if one.peak_allocated_bytes is None:
            return {}
        stages = one.stages
        if not stages or max(stages.values()) < _REACHED * one.peak_allocated_bytes:
            # The stage that peaked is lacking, so the whole's peak is that of the stage that should have it.
            stages = {self.curve.peak_stage: one.peak_allocated_bytes}
        found = {
            stage: log_likelihood(values, stages[stage])
            for stage, values in self.curve.stages.items()
            if stage in stages
        }
        if one.peak_reserved_bytes:
            found["reserved"] = log_likelihood(self.curve.reserved, one.peak_reserved_bytes)
        return found


def newest(observations: Iterable[Observation]) -> list[Observation]:
    """Keep the newest runs: `NEWEST` of equal traits, `NEWEST_OF_REQUEST` of one request."""
    kept: list[Observation] = []
    counts: dict[tuple, int] = {}
    for one in observations:
        alike, same = (one.traits,), (one.traits, one.form)
        if counts.get(alike, 0) < NEWEST and counts.get(same, 0) < NEWEST_OF_REQUEST:
            kept.append(one)
            for key in (alike, same):
                counts[key] = counts.get(key, 0) + 1
    return kept
