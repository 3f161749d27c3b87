"""Request, basis and card in; verdict and signed headroom out."""

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Literal

from planner.components import SD_V15, STAGES, ModelFacts
from planner.errors import InvalidArgument
from planner.formula import estimate
from planner.gpus import Card
from planner.request import GenerationRequest

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
    `interval_bytes` is a range of the allocated peak; a basis without an interval repeats the point.
    `stages` are allocated peaks by stage, weights included.
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


def fit(request: GenerationRequest, card: Card, basis: str = "best", facts: ModelFacts = SD_V15) -> Answer:
    """The answer of this basis for one card; ``best`` takes the most trusted one that has something to say.

    Raises:
        InvalidArgument: `basis` is none of `BASES`.
    """
    if basis in ("best", "formula"):
        return _from_formula(request, card, facts)
    if basis in BASES:
        return Answer(
            card=card,
            basis=basis,  # ty: ignore[invalid-argument-type]
            verdict="unknown",
            reason=f"no {basis} answer is available in this version; --basis formula has one",
        )
    raise InvalidArgument("basis", f"must be one of {', '.join(BASES)}", basis)


def worst(verdicts: Iterable[Verdict]) -> Verdict:
    """The verdict that decides over several cards: no, then unknown, then tight, then fits.

    Raises:
        ValueError: there are no verdicts.
    """
    return min(verdicts, key=_WORST_FIRST.index)
