"""What a basis says of a request on a card: the verdict, the sizes behind it, and which decides over several."""

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Literal

from planner.cards.lookup import Card
from planner.units import MIB

Verdict = Literal["fits", "tight", "no", "unknown"]
Basis = Literal["formula", "dry-run", "calibrated", "measured"]

# The version of every JSON object that the planner prints: a change that a reader would get wrong counts it up.
SCHEMA = 1

# The bases that a plan can ask for: the best that has an answer, and then the most trusted first.
BASES: tuple[str, ...] = ("best", "measured", "calibrated", "dry-run", "formula")
# Never by colour alone: each verdict has a word and a sign.
SIGNS: dict[Verdict, str] = {"fits": "✓", "tight": "▲", "no": "✕", "unknown": "?"}
EXIT_CODES: dict[Verdict, int] = {"fits": 0, "tight": 11, "no": 10, "unknown": 12}
# A least capacity is searched in steps of this: no GPU's memory is known to better than ten times as much.
LEAST_STEP = 16 * MIB
# Over several cards the worst decides.
_WORST_FIRST: tuple[Verdict, ...] = ("no", "unknown", "tight", "fits")


@dataclass(frozen=True, kw_only=True)
class Answer:
    """What one basis says of one request on one card. Every size in bytes; None where there is nothing to say.

    `need_bytes` is the card memory at which the request runs comfortably, `minimum_bytes` the least at which it
    still runs. `headroom_bytes` is ``usable - need`` with its sign: negative is by how much it misses.
    `interval_bytes` is a range of the allocated peak; a basis without an interval repeats the point, and
    `assumptions` or `evidence` say why there is one. `stages` are allocated peaks by stage, weights included; a stage
    that the request does not have holds what stands on the card once it is loaded.
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
    # What the dry run takes for granted of the user's software, whatever the request and the GPU.
    stack: tuple[str, ...] = ()
    # The measured runs that it rests on, in words, and their ids.
    evidence: str | None = None
    runs: tuple[str, ...] = ()
    # The need if what is assumed, or not known better than an interval, turns out worst; None where nothing is.
    worst_need_bytes: int | None = None
    # What the replay within this card's memory allocates and reserves at most; None where it fits or does not run.
    capped_allocated_bytes: int | None = None
    capped_reserved_bytes: int | None = None

    @property
    def less_on_card_bytes(self) -> int | None:
        """Give the allocated peak on the card itself where that is less than with unlimited memory, else None."""
        capped, unlimited = self.capped_allocated_bytes, self.peak_allocated_bytes
        return capped if capped is not None and unlimited is not None and capped < unlimited else None

    @property
    def headroom_bytes(self) -> int | None:
        """``usable - need``; negative is by how much it misses."""
        return None if self.need_bytes is None else self.card.usable_bytes - self.need_bytes


def worst(verdicts: Iterable[Verdict]) -> Verdict:
    """The verdict that decides over several cards: no, then unknown, then tight, then fits.

    Raises:
        ValueError: there are no verdicts.
    """
    return min(verdicts, key=_WORST_FIRST.index)


def not_measured(card: Card) -> str:
    """Say that no run of the request on such a GPU is known."""
    return f"this request was not measured on such a card ({card.name}) yet"


def verdict_within(*, worst_need_bytes: int, minimum_bytes: int, card: Card) -> Verdict:
    """The verdict that two thresholds leave: `worst_need_bytes` must fit, and below `minimum_bytes` there is no hope.

    There is none only where the most that such a card was seen to leave to a process is too little by more than the
    step in which a minimum is searched. In between it runs with kernels that need less, or after the allocator has
    flushed its cache and tried again. Both have the card's `context_bytes` in them.
    """
    if worst_need_bytes <= card.usable_bytes:
        return "fits"
    return "tight" if minimum_bytes <= card.best_bytes + LEAST_STEP else "no"
