"""The least memory in which a request still runs: a search over replays within a capacity.

It is not so that more room always helps: less makes the allocator flush earlier, which can spare a bad split, so a
lucky capacity may lie below others that are out of memory. What is found is from where on it always runs: capacities up
to 256 MiB above the thrifty run's are looked at from above, and luck below a failure does not count.
"""

from __future__ import annotations

import math
from functools import lru_cache

from planner.answer import LEAST_STEP
from planner.cards.lookup import Card
from planner.programs.assemble import Play
from planner.programs.library import Library
from planner.replay.dry_run import KernelPolicy
from planner.replay.fast_replay import Peaks, Script, peaks
from planner.replay.peaks import peaks_of, same_work, script_of
from planner.request import GenerationRequest


def least_capacity_bytes(request: GenerationRequest, policy: KernelPolicy, library: Library) -> int:
    """Search the least capacity from which on a replay comes to its end, without the CUDA context, in steps of 16 MiB.

    In a cold process or in a warm one: one that has run the shape before remembers the plans without workspace, and
    never cuts a block for another. At most what such kernels reserve, which is enough and no multiple of the step.

    Raises:
        NoProgram: no program was compiled for what the request asks for.
    """
    work = same_work(request)
    return min(_least(library, work, kernels) for kernels in _cold_and_warm(policy))


def minimum_bytes(request: GenerationRequest, card: Card, library: Library) -> int:
    """Give the least memory of such a card at which the request still runs, its CUDA context within.

    A replay within the card's own memory may end well although more memory does not help all others: then that memory
    is enough.

    Raises:
        NoProgram: no program was compiled for what the request asks for.
    """
    policy = KernelPolicy.of(card.compute_capability)
    least = least_capacity_bytes(request, policy, library) + card.context_bytes
    own = next(
        (memory for memory in _own(card) if memory < least and _ends_within(request, card, library, memory)), least
    )
    return min(least, own)


def may_run(request: GenerationRequest, card: Card, library: Library) -> bool:
    """Tell whether `minimum_bytes` leaves hope on this card, as `planner.answer.verdict_within` does: a shorter search.

    Raises:
        NoProgram: no program was compiled for what the request asks for.
    """
    policy = KernelPolicy.of(card.compute_capability)
    capacity_bytes = card.best_bytes + LEAST_STEP - card.context_bytes
    work = same_work(request)
    if any(_is_known_enough(library, work, kernels, capacity_bytes) for kernels in _cold_and_warm(policy)):
        return True
    return any(_ends_within(request, card, library, memory) for memory in _own(card))


def peaks_within(request: GenerationRequest, card: Card, library: Library) -> Peaks | None:
    """Replay the request within the card's memory: a cold process, else a warm one; None where neither ends well.

    Raises:
        NoProgram: no program was compiled for what the request asks for.
    """
    work, policy = same_work(request), KernelPolicy.of(card.compute_capability)
    for memory in _own(card):
        for kernels in _cold_and_warm(policy):
            if found := _peaks_at(library, work, kernels, memory - card.context_bytes):
                return found
    return None


def _own(card: Card) -> tuple[int, ...]:
    return tuple(dict.fromkeys((card.usable_bytes, card.best_bytes)))


def _cold_and_warm(policy: KernelPolicy) -> tuple[KernelPolicy, KernelPolicy]:
    return policy, policy.without_workspace()


def _ends_within(request: GenerationRequest, card: Card, library: Library, memory_bytes: int) -> bool:
    work, policy = same_work(request), KernelPolicy.of(card.compute_capability)
    capacity_bytes = memory_bytes - card.context_bytes
    return any(_peaks_at(library, work, kernels, capacity_bytes) for kernels in _cold_and_warm(policy))


@lru_cache(maxsize=16384)
def _peaks_at(library: Library, request: GenerationRequest, policy: KernelPolicy, capacity_bytes: int) -> Peaks | None:
    return peaks(_script(library, request, policy, "ends"), capacity_bytes)


def _is_known_enough(library: Library, request: GenerationRequest, policy: KernelPolicy, capacity_bytes: int) -> bool:
    # One minimum for all cards whose kernels are alike: what is known of one capacity is known of those beyond it.
    known = _known(library, request, policy)
    if known[0] < capacity_bytes < known[1]:
        known[_is_enough(library, request, policy, capacity_bytes)] = capacity_bytes
    return capacity_bytes >= known[1]


@lru_cache(maxsize=4096)
def _known(library: Library, request: GenerationRequest, policy: KernelPolicy) -> list[float]:
    """The most capacity that is known to be too little, and the least that is known to be enough."""
    return [-1, math.inf]


@lru_cache(maxsize=4096)
def _least(library: Library, request: GenerationRequest, policy: KernelPolicy) -> int:
    _, high = _search(library, request, policy, math.inf)
    return min(high * LEAST_STEP, peaks_of(library, request, policy).reserved_bytes)


@lru_cache(maxsize=16384)
def _is_enough(library: Library, request: GenerationRequest, policy: KernelPolicy, capacity_bytes: int) -> bool:
    if peaks_of(library, request, policy).reserved_bytes <= capacity_bytes:
        return True
    limit = capacity_bytes // LEAST_STEP
    low, high = _search(library, request, policy, limit)
    return low < limit and high <= limit


@lru_cache(maxsize=16384)
def _ends(library: Library, request: GenerationRequest, policy: KernelPolicy, play: Play, steps: int) -> bool:
    return peaks(_script(library, request, policy, play), steps * LEAST_STEP) is not None


@lru_cache(maxsize=4)
def _script(library: Library, request: GenerationRequest, policy: KernelPolicy, play: Play) -> Script:
    return script_of(library, request, policy, play, has_end=True)


def _search(library: Library, request: GenerationRequest, policy: KernelPolicy, limit: float) -> tuple[int, int]:
    """Neighbouring steps of which the lower is too little and the upper enough, or a lower one of `limit` or above.

    Searched on the history with every repeated call played once, and only then tried on the whole.
    """

    def ends(steps: int, play: Play = "first") -> bool:
        return _ends(library, request, policy, play, steps)

    thrifty = peaks_of(library, request, policy.without_workspace(), is_thrifty=True)
    enough = -(-peaks_of(library, request, policy).reserved_bytes // LEAST_STEP)
    # Less than what lives at once can never do.
    low, likely = (thrifty.allocated_bytes - 1) // LEAST_STEP, -(-thrifty.reserved_bytes // LEAST_STEP)
    high = likely + 16
    while high < enough and low < limit and not ends(high):
        low, high = high, likely + 2 * (high - likely)
    high = min(high, enough)
    for steps in (likely + 6, likely + 1, likely):
        if low < steps < high:
            if not ends(steps):
                low = steps
                break
            high = steps
    while high - low > 1 and low < limit:
        middle = (low + high) // 2
        low, high = (low, middle) if ends(middle) else (middle, high)
    # The whole may need more than its sketch: results of many tiles and slices pile up.
    gap = 1
    while low < limit and high < enough and not ends(high, "ends"):
        low, high, gap = high, min(enough, high + gap), 2 * gap
    while gap > 1 and high - low > 1 and low < limit:
        middle = (low + high) // 2
        low, high = (low, middle) if ends(middle, "ends") else (middle, high)
    return low, high
