"""What was measured, as the planner sees it: rows without storage, found by card family and by request."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from statistics import median
from typing import TYPE_CHECKING, NamedTuple

from planner.calibration.runs import Run, newest
from planner.calibration.similarity import MIN_WEIGHT, Cell, Kind, cell_of
from planner.calibration.workspace_curve import PREFERRED, Curve, Scope
from planner.cards.lookup import Card, card_named, emulated_card, emulated_name, family_of
from planner.errors import UnknownCard
from planner.request import GenerationRequest

if TYPE_CHECKING:
    from planner.calibration.calibrate import Calibration

# So many runs of a card tell its context better than the catalogue does.
_ENOUGH_CONTEXTS = 3


# A name that the catalogue has not is compared with all that it has.
@lru_cache(maxsize=1024)
def model_of(card: str, total_bytes: int | None = None) -> str:
    """The catalogue's name of a card by any of its names and its memory, or the name itself where it has none."""
    try:
        return card_named(card, total_bytes).name
    except UnknownCard:
        return card


@dataclass(frozen=True, kw_only=True)
class Observation:
    """One measured run on a GPU. Bytes; `stages` are allocated peaks by stage, empty where only the whole is known.

    `peak_allocated_bytes` is None where only the reserved peak was published: such a run is graded, and calibrates
    nothing.
    `is_alone` says that it had the whole card, so that its end was the card's own: nobody else held memory of it and,
    as `emulated_bytes` says, no smaller capacity was emulated. `ended_in` is the stage or phase in which it was out of
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
        """The catalogue's name of its card, or the driver's where the catalogue has none."""
        return model_of(self.card, self.total_bytes)

    @property
    def card_name(self) -> str:
        """The catalogue's name of its card, and the capacity that was emulated on it, if one was."""
        return emulated_name(self.model, self.emulated_bytes)

    @cached_property
    def cell(self) -> Cell:
        """Give its similarity key."""
        return cell_of(self.request, self.capability, self.attention, self.cudnn, self.versions, self.scope)

    @cached_property
    def gpu(self) -> Card | None:
        """Give the catalogue's GPU that it ran on, with its emulated capacity; None where the catalogue has none."""
        try:
            card = card_named(self.card, self.total_bytes)
        except UnknownCard:
            return None
        return card if self.emulated_bytes is None else emulated_card(card, self.emulated_bytes)

    def lacks_room_for(self, reserved_bytes: float) -> bool:
        """Tell whether its GPU's memory cannot hold this much reserved and the CUDA context, at the best of both."""
        if self.scope != "pipeline" or self.gpu is None:
            return False
        return reserved_bytes + self.gpu.context_low_bytes > self.gpu.best_bytes

    def as_run(self, curve: Curve) -> Run:
        """Pair the run with its curve, for calibration.

        A published run does not say whether the allocator had to retry: where its GPU's memory cannot hold what
        preferred kernels reserve, its peak is that of the memory, and teaches nothing of the kernels.
        """
        is_capped = self.is_reference and self.lacks_room_for(float(curve.reserved[PREFERRED]))
        return Run(
            run_id=self.run_id,
            request=self.request.allocation_form(),
            cell=self.cell,
            curve=curve,
            peak_allocated_bytes=self.peak_allocated_bytes,
            peak_reserved_bytes=self.peak_reserved_bytes,
            stages=self.stages,
            calibrates=self.peak_allocated_bytes is not None and not is_capped,
        )


class Contexts(NamedTuple):
    """A card's CUDA context, from the least to the most that is to be expected. Bytes."""

    low: int
    middle: int
    high: int


# Gives each run's curve, by run id; those for which there is no program are left out.
CurvesOf = Callable[[Sequence[Observation]], Mapping[str, Curve]]


class Evidence:
    """All measured runs that may speak, newest first, and what is computed from them as it is asked for.

    `versions` are those that a prediction is for: runs of others are stale.
    """

    def __init__(self, observations: Iterable[Observation], curves_of: CurvesOf, versions: str):
        self.observations = tuple(observations)
        self.versions = versions
        self._curves_of = curves_of
        self._calibrations: dict[str, Calibration | None] = {}

    def of_family(self, family: str) -> list[Observation]:
        """List the runs on GPUs of this family."""
        return [one for one in self.observations if family_of(one.capability) == family]

    def with_curves(self, observations: Sequence[Observation]) -> list[Run]:
        """Pair the runs that ended unhindered with their curves; runs that no program can replay are left out."""
        full = [one for one in observations if one.kind == "full"]
        curves = self._curves_of(full) if full else {}
        return [one.as_run(curves[one.run_id]) for one in full if one.run_id in curves]

    def calibration(self, capability: tuple[int, int]) -> Calibration | None:
        """Build the calibration from the runs of this capability's GPU family, or None where there are none.

        Runs that met the end of their memory only bound their peak. In simulations such bounds made no answer better,
        and alone they made intervals too narrow.
        """
        family = family_of(capability)
        if family not in self._calibrations:
            # Most answers do without it, and a cold start is faster without its tables.
            from planner.calibration.calibrate import Calibration

            # The newest are selected before their curves are made, which takes time.
            runs = self.with_curves(newest(self._calibrating(family)))
            self._calibrations[family] = Calibration(runs) if runs else None
        return self._calibrations[family]

    def has_enough_for(self, request: GenerationRequest, card: Card) -> bool:
        """Tell whether enough runs like this request may be known to correct it, before any of their curves is made."""
        target = self.target(request, card)
        return sum(target.weight(one.cell) for one in self._calibrating(target.family)) >= MIN_WEIGHT

    def _calibrating(self, family: str) -> list[Observation]:
        return [one for one in self.of_family(family) if one.kind == "full" and one.peak_allocated_bytes]

    def of_request(self, request: GenerationRequest, card: Card) -> tuple[list[Observation], list[Observation]]:
        """List the runs of this request on this GPU model, newest first: current ones, and stale ones."""
        form, model = request.allocation_form(), card.model
        found = [
            one
            for one in self.observations
            if one.scope == "pipeline" and one.model == model and one.request.allocation_form() == form
        ]
        fresh = [one for one in found if one.versions == self.versions]
        return fresh, [one for one in found if one.versions != self.versions]

    def target(self, request: GenerationRequest, card: Card) -> Cell:
        """Give the similarity key of this request on this GPU with the installed versions.

        The cuDNN is that of the newest run with today's versions on such cards: it comes with torch.
        """
        family = self.of_family(family_of(card.compute_capability))
        cudnn = next((one.cudnn for one in family if one.cudnn and one.versions == self.versions), None)
        return cell_of(request, card.compute_capability, cudnn=cudnn, versions=self.versions)

    def contexts(self, card: Card) -> Contexts:
        """Give the CUDA context: as measured where there are enough runs, else the catalogue's range.

        The range is the middle of what was measured, so that one absurd run does not set it.
        """
        found = sorted(one.context_bytes for one in self.observations if one.context_bytes and one.model == card.model)
        if len(found) < _ENOUGH_CONTEXTS:
            return Contexts(card.context_low_bytes, card.context_bytes, card.context_bytes)
        outer = max(1, len(found) // 10)
        return Contexts(found[outer], round(median(found)), found[len(found) - 1 - outer])
