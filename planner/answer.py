"""Hold the answer of a basis to a request on a GPU: the verdict and the sizes behind it."""

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

from planner.cards.lookup import Card
from planner.units import MIB

Verdict = Literal["fits", "tight", "no", "unknown"]
Basis = Literal["formula", "dry-run", "calibrated", "measured"]

# The version of every JSON object that the planner prints. Count it up for a change that would mislead a reader.
SCHEMA = 1

# The bases that a plan can ask for: the best that has an answer, and then the most trusted first.
BASES: tuple[str, ...] = ("best", "measured", "calibrated", "dry-run", "formula")
# Each verdict has a word and a sign, for no verdict may be told by its colour alone.
SIGNS: dict[Verdict, str] = {"fits": "✓", "tight": "▲", "no": "✕", "unknown": "?"}
EXIT_CODES: dict[Verdict, int] = {"fits": 0, "tight": 11, "no": 10, "unknown": 12}
# The minimum is searched in steps of this size. No GPU's usable memory is known to better than ten times as much.
MINIMUM_STEP = 16 * MIB
# Over several GPUs the worst verdict decides.
_WORST_FIRST: tuple[Verdict, ...] = ("no", "unknown", "tight", "fits")


class AfterCall(NamedTuple):
    """Hold the bytes that a process keeps on the GPU between two calls.

    `allocated_bytes` are weights, cuBLAS's workspace and what the scheduler keeps. `cached_bytes` are reserved beyond
    them; of these ``torch.cuda.empty_cache()`` gives back `releasable_bytes`.
    """

    allocated_bytes: int
    cached_bytes: int
    releasable_bytes: int
    context_bytes: int

    @property
    def total_bytes(self) -> int:
        """Compute what other processes cannot use."""
        return self.allocated_bytes + self.cached_bytes + self.context_bytes


class Copies(NamedTuple):
    """Count the processes that run the request at once on a whole GPU, each at its worst need.

    `separate` processes have a CUDA context each. `shared_context` counts one context for all, as NVIDIA's MPS keeps it
    in its server: an estimate, for no run has measured what a client of MPS takes for itself.
    """

    separate: int
    shared_context: int


@dataclass(frozen=True, kw_only=True)
class Answer:
    """Hold the answer of one basis to one request on one GPU.

    Sizes are in bytes, and None where the basis has no answer. `need_bytes` is the GPU memory at which the request runs
    comfortably, `minimum_bytes` the minimum at which it still runs, and `worst_need_bytes` the need if every
    assumption, and everything known only as an interval, turns out worst; None where nothing is uncertain.
    `interval_bytes` is a range of the allocated peak; a basis without an interval repeats the point. `assumptions` or
    `evidence` say why there is a range. `stages` are allocated peaks by stage, weights included; a stage that the
    request does not have holds the bytes allocated once the weights are loaded. `capped_allocated_bytes` and
    `capped_reserved_bytes` are the peaks of a replay within this GPU's memory; None where the request fits or does not
    run. `stack` lists what the dry run assumes of the user's software, whatever the request and the GPU. `evidence`
    names the measured runs behind the answer in words, and `runs` has their ids. `after_call` is what stays on the GPU
    after the call; None where no dry run answers, where preferred kernels do not fit, and with offload, whose last move
    off the GPU is not replayed. `peak_pass` is the pass of hires fix that allocates most, 1 or 2; None without it.
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
    stack: tuple[str, ...] = ()
    evidence: str | None = None
    runs: tuple[str, ...] = ()
    worst_need_bytes: int | None = None
    capped_allocated_bytes: int | None = None
    capped_reserved_bytes: int | None = None
    after_call: AfterCall | None = None
    peak_pass: int | None = None

    @property
    def less_on_card_bytes(self) -> int | None:
        """Give the allocated peak within this GPU's memory where the limit lowers it, else None."""
        capped, unlimited = self.capped_allocated_bytes, self.peak_allocated_bytes
        return capped if capped is not None and unlimited is not None and capped < unlimited else None

    @property
    def copies(self) -> Copies | None:
        """Count how many of this run at once on the whole GPU; None without a need."""
        need = self.worst_need_bytes or self.need_bytes
        if not need:
            return None
        usable, context = self.card.whole.usable_bytes, self.context_bytes or 0
        return Copies(usable // need, max(0, usable - context) // max(1, need - context))

    @property
    def headroom_bytes(self) -> int | None:
        """Compute ``usable - need``: if negative, the bytes that are missing."""
        return None if self.need_bytes is None else self.card.usable_bytes - self.need_bytes


def worst(verdicts: Iterable[Verdict]) -> Verdict:
    """Find the verdict that decides over several GPUs: no, then unknown, then tight, then fits.

    Raises:
        ValueError: there are no verdicts.
    """
    return min(verdicts, key=_WORST_FIRST.index)


def not_measured(card: Card) -> str:
    """Say that no run of the request on such a GPU is known."""
    return f"this request was not measured on such a GPU ({card.name}) yet"


def verdict_within(*, worst_need_bytes: int, minimum_bytes: int, card: Card) -> Verdict:
    """Decide the verdict by two thresholds, both with the GPU's `context_bytes` included.

    The request ``fits`` where `worst_need_bytes` is usable. It is ``no`` where `minimum_bytes` exceeds the most memory
    that such a GPU was seen to leave to a process, by more than the step in which a minimum is searched. In between it
    is ``tight``: it runs with kernels that need less, or after the allocator has flushed its cache and tried again.
    """
    if worst_need_bytes <= card.usable_bytes:
        return "fits"
    return "tight" if minimum_bytes <= card.best_bytes + MINIMUM_STEP else "no"
