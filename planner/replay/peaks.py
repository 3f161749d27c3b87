"""Answer single questions about a request on a GPU by the dry run, and keep the answers.

A boundary or a map asks for hundreds. Every number is the one that `planner.fit` answers, or a bound and named so.
Functions with a cache take a request in its `replay_form`; those that take a GPU bring the request into it.
"""

from __future__ import annotations

import itertools
import threading
from collections.abc import Iterator
from dataclasses import replace
from functools import lru_cache

from planner.cards.lookup import Card
from planner.programs.assemble import events_of
from planner.programs.events import Play
from planner.programs.library import Library
from planner.replay.assumptions import assumptions
from planner.replay.dry_run import allocated_peaks
from planner.replay.fast_replay import NOTHING_LOADED, Loaded, Peaks, Script, loaded, peaks, script
from planner.replay.kernels import REPLAYED_FRACTIONS, KernelPolicy, is_large_convolution
from planner.request import GenerationRequest


def fits_within(request: GenerationRequest, card: Card, library: Library, memory_bytes: int) -> bool:
    """Tell whether the worst need, which decides over ``fits``, is at most this much memory.

    Where something is assumed, all that kernels could take is replayed, until one replay needs too much.

    Raises:
        NoProgram: no program was compiled for what the request asks for.
    """
    needs = needs_of(library, request.replay_form(), KernelPolicy.of(card.compute_capability, request.dtype))
    room = memory_bytes - card.context_bytes
    if needs.preferred_bytes > room:
        return False
    return not assumed(request, card, library) or needs.is_worst_within(room)


def assumed(request: GenerationRequest, card: Card, library: Library) -> tuple[str, ...]:
    """List what the dry run assumes of this request on this GPU, in words.

    Raises:
        NoProgram: no program was compiled for what the request asks for.
    """
    has_large = _has_large(library, request.replay_form())
    return tuple(assumptions(request, card.compute_capability, has_large=has_large))


def need_bytes(request: GenerationRequest, card: Card, library: Library) -> int:
    """Compute the GPU memory at which the request runs with preferred kernels.

    The CUDA context is included.

    Raises:
        NoProgram: no program was compiled for what the request asks for.
    """
    policy = KernelPolicy.of(card.compute_capability, request.dtype)
    return peaks_of(library, request.replay_form(), policy).reserved_bytes + card.context_bytes


def need_bound_bytes(request: GenerationRequest, card: Card, library: Library, *, workspace: bool = True) -> int:
    """Compute a lower bound of the need; without `workspace`, a lower bound of the minimum too.

    It replays no allocator.

    Raises:
        NoProgram: no program was compiled for what the request asks for.
    """
    policy = KernelPolicy.of(card.compute_capability, request.dtype)
    policy = policy if workspace else policy.without_workspace()
    return need_bound(request, policy, library) + card.context_bytes


def need_bound(request: GenerationRequest, policy: KernelPolicy, library: Library) -> int:
    """Compute a lower bound of the need with kernels of this policy, without the CUDA context.

    Raises:
        NoProgram: no program was compiled for what the request asks for.
    """
    return _bound(library, request.replay_form(), policy)


@lru_cache(maxsize=16384)
def _has_large(library: Library, request: GenerationRequest) -> bool:
    return bool(is_large_convolution(events_of(library, request).convolutions).any())


class Needs:
    """Hold what one request reserves with kernels of one policy, and replay only as much as is asked."""

    def __init__(self, library: Library, request: GenerationRequest, policy: KernelPolicy):
        self._of = library, request, policy
        self._waiting: Iterator[KernelPolicy] | None = None
        self._preferred_bytes: int | None = None
        self._worst_bytes = 0
        self._lock = threading.Lock()

    @property
    def preferred_bytes(self) -> int:
        """Compute the reserved peak with preferred kernels."""
        if self._preferred_bytes is None:
            self._preferred_bytes = peaks_of(*self._of).reserved_bytes
        return self._preferred_bytes

    def is_worst_within(self, room_bytes: int) -> bool:
        """Tell whether the reserved peaks of all that kernels could take are at most this."""
        library, request, policy = self._of
        with self._lock:
            if self._waiting is None:
                self._waiting = iter(_possible(library, request, policy))
            # What is known to be too much for little room is remembered for the next question.
            while self._worst_bytes <= room_bytes:
                kernels = next(self._waiting, None)
                if kernels is None:
                    return True
                reserved = peaks_of(library, request, kernels).reserved_bytes
                self._worst_bytes = max(self._worst_bytes, reserved)
            return False


@lru_cache(maxsize=16384)
def needs_of(library: Library, request: GenerationRequest, policy: KernelPolicy) -> Needs:
    """Give what is known of this request, in its replay form, with kernels of this policy."""
    return Needs(library, request, policy)


@lru_cache(maxsize=16384)
def worst_peaks(library: Library, request: GenerationRequest, policy: KernelPolicy) -> Peaks:
    """Replay all that kernels could take as workspace, and give the largest peaks.

    The reserved peak is not monotonic in the workspace: neither end of the range is always the largest.
    """
    found = [peaks_of(library, request, kernels) for kernels in _possible(library, request, policy)]
    return Peaks(max(one.reserved_bytes for one in found), max(one.allocated_bytes for one in found))


@lru_cache(maxsize=16384)
def _possible(library: Library, request: GenerationRequest, policy: KernelPolicy) -> tuple[KernelPolicy, ...]:
    """Give the kernels at each of `REPLAYED_FRACTIONS`, the largest first.

    Of kernels that take the same workspace, only one is given.
    """
    convolutions = events_of(library, request).convolutions
    # Without a large convolution, both choices for those are one.
    choices = (True, False) if is_large_convolution(convolutions).any() else (True,)
    distinct: dict[bytes, KernelPolicy] = {}
    for fraction, are_alike in itertools.product(reversed(REPLAYED_FRACTIONS), choices):
        kernels = replace(policy, workspace_fraction=fraction, are_large_like_others=are_alike)
        distinct.setdefault(kernels.convolution_bytes(convolutions).tobytes(), kernels)
    return tuple(distinct.values())


@lru_cache(maxsize=8)
def _loaded(library: Library, request: GenerationRequest) -> Loaded:
    return loaded(events_of(library, request))


def script_of(library: Library, request: GenerationRequest, policy: KernelPolicy, play: Play = "ends") -> Script:
    """Prepare the request's events for `fast_replay.play`."""
    is_expandable = request.allocator == "expandable"
    # Pages of expandable segments are mapped as they are needed, so a replay of them begins with the weights.
    start = NOTHING_LOADED if is_expandable else _loaded(library, request.loading_form())
    return script(events_of(library, request, play), policy, start, is_expandable=is_expandable)


@lru_cache(maxsize=16384)
def peaks_of(
    library: Library, request: GenerationRequest, policy: KernelPolicy, *, flushes_first: bool = False
) -> Peaks:
    """Replay the request in unlimited memory, and give its peaks.

    `flushes_first` flushes the cache before it asks for any segment.
    """
    found = peaks(script_of(library, request, policy), flushes_first=flushes_first)
    assert found is not None, "unlimited memory ran out"
    return found


@lru_cache(maxsize=16384)
def _bound(library: Library, request: GenerationRequest, policy: KernelPolicy) -> int:
    [peak] = allocated_peaks(library, request, [(request.latent_height, request.latent_width)], policy)
    return int(peak)
