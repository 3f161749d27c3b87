"""The least memory in which a request still runs: a search over replays within a capacity.

It is not so that more room always helps: less makes the allocator flush earlier, which can spare a bad split, so a
lucky capacity may lie below others that are out of memory. What is found is from where on it always runs: capacities up
to 256 MiB above the thrifty run's are looked at from above, and luck below a failure does not count.
"""

from __future__ import annotations

import math
from functools import lru_cache

from planner.dryrun import KernelPolicy
from planner.flatten import Play
from planner.gpus import Card
from planner.lean import Script, peaks
from planner.needs import peaks_of, same_work, script_of
from planner.program import Library
from planner.request import GenerationRequest
from planner.units import MIB

# Fine enough for a threshold that no card is known to better than ten times this.
LEAST_STEP = 16 * MIB


def least_capacity_bytes(request: GenerationRequest, policy: KernelPolicy, library: Library) -> int:
    """The least capacity from which on the replay comes to its end, without the CUDA context: a multiple of 16 MiB.

    At most what the preferred kernels reserve, which is enough and no such multiple.

    Raises:
        NoProgram: no program was compiled for what the request asks for.
    """
    return _least(library, same_work(request), policy)


def runs_within(request: GenerationRequest, card: Card, library: Library, memory_bytes: int) -> bool:
    """Whether so much card memory is at least what `least_capacity_bytes` finds and the context: a shorter search.

    Raises:
        NoProgram: no program was compiled for what the request asks for.
    """
    request, policy = same_work(request), KernelPolicy.of(card.compute_capability)
    capacity_bytes = memory_bytes - card.context_bytes
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
