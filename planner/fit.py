"""Request, basis and card in; verdict and signed headroom out."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from functools import lru_cache
from typing import TYPE_CHECKING, Literal

from planner.components import SD_V15, STAGES, ModelFacts
from planner.errors import InvalidArgument, NoProgram
from planner.formula import estimate
from planner.gpus import Card
from planner.request import GenerationRequest

if TYPE_CHECKING:
    from planner.dryrun import DryRun, KernelPolicy
    from planner.program import Library

Verdict = Literal["fits", "tight", "no", "unknown"]
Basis = Literal["formula", "dry-run", "calibrated", "measured"]

BASES: tuple[str, ...] = ("best", "formula", "dry-run", "calibrated", "measured")
EXIT_CODES: dict[Verdict, int] = {"fits": 0, "tight": 11, "no": 10, "unknown": 12}
# Over several cards the worst decides.
_WORST_FIRST: tuple[Verdict, ...] = ("no", "unknown", "tight", "fits")


@dataclass(frozen=True, kw_only=True)
class Answer:
    """What one basis says of one request on one card. Every size in bytes; None where there is nothing to say.

    `need_bytes` is the card memory at which the request runs comfortably, `minimum_bytes` the least at which it
    still runs. `headroom_bytes` is ``usable - need`` with its sign: negative is by how much it misses.
    `interval_bytes` is a range of the allocated peak; a basis without an interval repeats the point, and
    `assumptions` say why there is one. `stages` are allocated peaks by stage, weights included; a stage that the
    request does not have holds what stands on the card once it is loaded.
    """

    card: Card
    verdict: Verdict
    basis: Basis
    need_bytes: int | None = None
    minimum_bytes: int | None = None
    peak_allocated_bytes: int | None = None
    minimum_allocated_bytes: int | None = None
    peak_reserved_bytes: int | None = None
    context_bytes: int | None = None
    interval_bytes: tuple[int, int] | None = None
    peak_stage: str | None = None
    stages: dict[str, int] = field(default_factory=dict)
    reason: str | None = None
    assumptions: tuple[str, ...] = ()
    # The need if what is assumed turns out worst; None where nothing is.
    worst_need_bytes: int | None = None

    @property
    def headroom_bytes(self) -> int | None:
        """``usable - need``; negative is by how much it misses."""
        return None if self.need_bytes is None else self.card.usable_bytes - self.need_bytes


def _from_formula(request: GenerationRequest, card: Card, facts: ModelFacts) -> Answer:
    breakdown = estimate(request, facts)
    allocated = breakdown.base_bytes + breakdown.activation_bytes
    total = breakdown.total_bytes
    return Answer(
        card=card,
        basis="formula",
        # One threshold: the formula knows no smaller workspace to fall back to, so it never says tight.
        verdict="fits" if total <= card.usable_bytes else "no",
        need_bytes=total,
        minimum_bytes=total,
        peak_allocated_bytes=allocated,
        minimum_allocated_bytes=allocated,
        peak_reserved_bytes=total,
        # The published 20 % covers kernels and framework, so the context is inside the total, not on top of it.
        context_bytes=0,
        interval_bytes=(allocated, allocated),
        peak_stage=breakdown.peak_stage,
        # Stages without a term in the formula hold the weights and nothing else.
        stages={stage: breakdown.base_bytes + breakdown.stages.get(stage, 0) for stage in STAGES},
    )


@lru_cache(maxsize=256)
def _runs(library: Library, request: GenerationRequest, policy: KernelPolicy) -> tuple[DryRun, DryRun]:
    """The dry runs that need no capacity: with preferred kernels, and as thrifty as can be."""
    from planner.dryrun import dry_run, thrifty_run
    from planner.flatten import events_of

    events = events_of(library, request)
    return dry_run(events, policy), thrifty_run(events, policy)


@lru_cache(maxsize=256)
def _least(library: Library, request: GenerationRequest, policy: KernelPolicy) -> int:
    from planner.dryrun import least_capacity_bytes
    from planner.flatten import events_of

    preferred, thrifty = _runs(library, request, policy)
    events, sketch = (events_of(library, request, play) for play in ("ends", "first"))
    return least_capacity_bytes(events, sketch, policy, preferred.peak_reserved_bytes, thrifty)


def _from_dry_run(request: GenerationRequest, card: Card, library: Library) -> Answer:
    from planner.dryrun import KernelPolicy, assumptions

    # What an answer depends on: the canonical size, and nothing that moves no allocation.
    request = replace(request.canonical(), prompt_tokens=1)
    policy = KernelPolicy.of(card.compute_capability)
    preferred, thrifty = _runs(library, request, policy)
    notes = tuple(assumptions(request, card.compute_capability))
    # Where something is assumed, the worst that it could turn out to be must fit too.
    worst_case = _runs(library, request, policy.cautious())[0] if notes else preferred
    least = _least(library, request, policy)
    need = preferred.peak_reserved_bytes + card.context_bytes
    # There is no hope only where the most that such a card was seen to leave to a process is too little. In between it
    # runs with kernels that need less, or after the allocator has flushed its cache and tried again.
    room = card.usable_bytes - card.context_bytes
    most = max(room, card.usable_high_bytes - card.context_low_bytes)
    if max(preferred.peak_reserved_bytes, worst_case.peak_reserved_bytes) <= room:
        verdict: Verdict = "fits"
    else:
        verdict = "tight" if least <= most else "no"
    peak = preferred.peak_allocated_bytes
    # Without workspace other blocks are cut, and a few may hold more beyond their requests.
    least_peak = min(thrifty.peak_allocated_bytes, peak)
    interval = (least_peak, max(peak, worst_case.peak_allocated_bytes)) if notes else (peak, peak)
    return Answer(
        card=card,
        basis="dry-run",
        verdict=verdict,
        need_bytes=need,
        minimum_bytes=least + card.context_bytes,
        peak_allocated_bytes=peak,
        minimum_allocated_bytes=least_peak,
        peak_reserved_bytes=preferred.peak_reserved_bytes,
        context_bytes=card.context_bytes,
        interval_bytes=interval,
        peak_stage=preferred.peak_stage,
        stages={
            stage: preferred.stages[stage].allocated_bytes if stage in preferred.stages else preferred.loaded_bytes
            for stage in STAGES
        },
        assumptions=notes,
        worst_need_bytes=max(preferred.peak_reserved_bytes, worst_case.peak_reserved_bytes) + card.context_bytes
        if notes
        else None,
    )


def fit(
    request: GenerationRequest,
    card: Card,
    basis: str = "best",
    facts: ModelFacts = SD_V15,
    library: Library | None = None,
) -> Answer:
    """The answer of this basis for one card; ``best`` takes the most trusted one that has something to say.

    The dry run plays the programs of `library`, or the shipped ones.

    Raises:
        InvalidArgument: `basis` is none of `BASES`.
    """
    if basis not in BASES:
        raise InvalidArgument("basis", f"must be one of {', '.join(BASES)}", basis)
    if basis in ("best", "dry-run"):
        from planner.program import shipped

        try:
            return _from_dry_run(request, card, library or shipped())
        except NoProgram as error:
            if basis == "dry-run":
                return Answer(card=card, basis="dry-run", verdict="unknown", reason=str(error))
            return replace(_from_formula(request, card, facts), reason=f"{error}; the formula answers instead")
    if basis == "formula":
        return _from_formula(request, card, facts)
    return Answer(
        card=card,
        basis=basis,  # ty: ignore[invalid-argument-type]
        verdict="unknown",
        reason=f"no {basis} answer is available in this version; --basis dry-run has one",
    )


def worst(verdicts: Iterable[Verdict]) -> Verdict:
    """The verdict that decides over several cards: no, then unknown, then tight, then fits.

    Raises:
        ValueError: there are no verdicts.
    """
    return min(verdicts, key=_WORST_FIRST.index)
