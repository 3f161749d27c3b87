"""Search the minimum memory in which a request still runs, by replays within a capacity.

Feasibility is not monotonic in the capacity: less memory makes the allocator flush its cache earlier, which can avoid a
bad split. So a request may run at one capacity and be out of memory at a larger one. The search returns the lowest
capacity above which every larger one succeeds. It looks down from 256 MiB above what a replay reserves that flushes its
cache before each segment. A success below a failure does not count.
"""

from __future__ import annotations

import math
from functools import lru_cache

from planner.answer import MINIMUM_STEP
from planner.cards.lookup import Card
from planner.programs.events import Play
from planner.programs.library import Library
from planner.replay.fast_replay import Peaks, Played, Script, play
from planner.replay.kernels import KernelPolicy
from planner.replay.peaks import peaks_of, script_of
from planner.request import GenerationRequest


def minimum_capacity_bytes(request: GenerationRequest, policy: KernelPolicy, library: Library) -> int:
    """Search the capacity from which on the request always runs, in steps of 16 MiB.

    The CUDA context is not included. The lower of a cold process and a warm one counts: a process that has run the
    shape before remembers the plans without workspace, and never cuts a block for another. The result is at most what
    such kernels reserve, which is enough and no multiple of the step.

    Raises:
        NoProgram: no program was compiled for what the request asks for.
    """
    form = request.replay_form()
    return min(_minimum(library, form, kernels) for kernels in _cold_and_warm(policy))


def minimum_bytes(request: GenerationRequest, card: Card, library: Library) -> int:
    """Compute the minimum memory of such a GPU at which the request still runs.

    The CUDA context is included. A replay within the GPU's own memory may succeed although some larger capacity fails:
    then that memory is enough.

    Raises:
        NoProgram: no program was compiled for what the request asks for.
    """
    policy = KernelPolicy.of(card.compute_capability, request.dtype)
    minimum = minimum_capacity_bytes(request, policy, library) + card.context_bytes
    own = (memory for memory in _own(card) if memory < minimum and _runs_within(request, card, library, memory))
    return next(own, minimum)


def may_run(request: GenerationRequest, card: Card, library: Library) -> bool:
    """Tell whether `minimum_bytes` allows the verdict ``tight`` on this GPU.

    `planner.answer.verdict_within` has the rule. The search is shorter than that for the minimum itself.

    Raises:
        NoProgram: no program was compiled for what the request asks for.
    """
    policy = KernelPolicy.of(card.compute_capability, request.dtype)
    capacity_bytes = card.best_bytes + MINIMUM_STEP - card.context_bytes
    form = request.replay_form()
    if any(_is_known_enough(library, form, kernels, capacity_bytes) for kernels in _cold_and_warm(policy)):
        return True
    return any(_runs_within(request, card, library, memory) for memory in _own(card))


def peaks_within(request: GenerationRequest, card: Card, library: Library) -> Peaks | None:
    """Replay the request within the GPU's memory, and give its peaks.

    A cold process is tried first, then a warm one; None where neither succeeds.

    Raises:
        NoProgram: no program was compiled for what the request asks for.
    """
    for memory in _own(card):
        if found := _peaks_within(request, card, library, memory):
            return found
    return None


def _own(card: Card) -> tuple[int, ...]:
    """Give the GPU's usual memory for a process, and the most that was seen."""
    return tuple(dict.fromkeys((card.usable_bytes, card.best_bytes)))


def _cold_and_warm(policy: KernelPolicy) -> tuple[KernelPolicy, KernelPolicy]:
    return policy, policy.without_workspace()


def _peaks_within(request: GenerationRequest, card: Card, library: Library, memory_bytes: int) -> Peaks | None:
    form, policy = request.replay_form(), KernelPolicy.of(card.compute_capability, request.dtype)
    capacity_bytes = memory_bytes - card.context_bytes
    tried = (_peaks_at(library, form, kernels, capacity_bytes) for kernels in _cold_and_warm(policy))
    return next((found for found in tried if found), None)


def _runs_within(request: GenerationRequest, card: Card, library: Library, memory_bytes: int) -> bool:
    return _peaks_within(request, card, library, memory_bytes) is not None


def _peaks_at(library: Library, request: GenerationRequest, policy: KernelPolicy, capacity_bytes: int) -> Peaks | None:
    if capacity_bytes >= (unlimited := peaks_of(library, request, policy)).reserved_bytes:
        return unlimited
    found = _played(library, request, policy, "ends", capacity_bytes)
    return Peaks(found.reserved_bytes, found.allocated_bytes) if found.is_ok else None


def _played(
    library: Library, request: GenerationRequest, policy: KernelPolicy, play_of: Play, capacity_bytes: int
) -> Played:
    """Replay within this capacity, unless an earlier replay at another capacity decided everything alike."""
    known = _replays(library, request, policy, play_of)
    for found in known:
        if found.reserved_bytes <= capacity_bytes < found.refused_bytes:
            return found
    found = play(_script(library, request, policy, play_of), capacity_bytes)
    known.append(found)
    return found


@lru_cache(maxsize=4096)
def _replays(library: Library, request: GenerationRequest, policy: KernelPolicy, play_of: Play) -> list[Played]:
    """Keep the replays that were made within a capacity."""
    return []


def _is_known_enough(library: Library, request: GenerationRequest, policy: KernelPolicy, capacity_bytes: int) -> bool:
    # All GPUs whose kernels are alike have one minimum: what is known of one capacity is known of those beyond it.
    known = _known(library, request, policy)
    if known[0] < capacity_bytes < known[1]:
        known[_is_enough(library, request, policy, capacity_bytes)] = capacity_bytes
    return capacity_bytes >= known[1]


@lru_cache(maxsize=4096)
def _known(library: Library, request: GenerationRequest, policy: KernelPolicy) -> list[float]:
    """Keep the largest capacity known to be too little, and the smallest known to be enough."""
    return [-1, math.inf]


@lru_cache(maxsize=4096)
def _minimum(library: Library, request: GenerationRequest, policy: KernelPolicy) -> int:
    _, high = _search(library, request, policy, math.inf)
    return min(high * MINIMUM_STEP, peaks_of(library, request, policy).reserved_bytes)


@lru_cache(maxsize=16384)
def _is_enough(library: Library, request: GenerationRequest, policy: KernelPolicy, capacity_bytes: int) -> bool:
    if peaks_of(library, request, policy).reserved_bytes <= capacity_bytes:
        return True
    limit = capacity_bytes // MINIMUM_STEP
    low, high = _search(library, request, policy, limit)
    return low < limit and high <= limit


def _runs_at(library: Library, request: GenerationRequest, policy: KernelPolicy, play_of: Play, steps: int) -> bool:
    return _played(library, request, policy, play_of, steps * MINIMUM_STEP).is_ok


@lru_cache(maxsize=4)
def _script(library: Library, request: GenerationRequest, policy: KernelPolicy, play_of: Play) -> Script:
    return script_of(library, request, policy, play_of)


def _search(library: Library, request: GenerationRequest, policy: KernelPolicy, limit: float) -> tuple[int, int]:
    """Find neighbouring steps of which the lower is too little and the upper enough.

    The search stops early once a lower step reaches `limit`. It runs on the history in which every repeated call is
    played once, and only then tries the whole history.
    """

    def runs(steps: int, play_of: Play = "first") -> bool:
        return _runs_at(library, request, policy, play_of, steps)

    smallest = peaks_of(library, request, policy.without_workspace(), flushes_first=True)
    enough = -(-peaks_of(library, request, policy).reserved_bytes // MINIMUM_STEP)
    # No capacity below the bytes that live at once can be enough.
    low, likely = (smallest.allocated_bytes - 1) // MINIMUM_STEP, -(-smallest.reserved_bytes // MINIMUM_STEP)
    high = likely + 16
    while high < enough and low < limit and not runs(high):
        low, high = high, likely + 2 * (high - likely)
    high = min(high, enough)
    for steps in (likely + 6, likely + 1, likely):
        if low < steps < high:
            if not runs(steps):
                low = steps
                break
            high = steps
    while high - low > 1 and low < limit:
        middle = (low + high) // 2
        low, high = (low, middle) if runs(middle) else (middle, high)
    # The whole history may need more than its sketch: results of many tiles and slices pile up.
    gap = 1
    while low < limit and high < enough and not runs(high, "ends"):
        low, high, gap = high, min(enough, high + gap), 2 * gap
    while gap > 1 and high - low > 1 and low < limit:
        middle = (low + high) // 2
        low, high = (low, middle) if runs(middle, "ends") else (middle, high)
    return low, high
