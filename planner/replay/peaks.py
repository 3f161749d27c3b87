"""Answer single questions about a request on a GPU by the dry run, and keep the answers.

A boundary or a map asks for hundreds. Every number is the one that `planner.fit` answers, or a bound and named so.
Functions with a cache take a request in its `replay_form`; those that take a GPU bring the request into it.
"""

from __future__ import annotations

import itertools
from dataclasses import replace
from functools import lru_cache

from planner.cards.lookup import Card
from planner.programs.assemble import events_of
from planner.programs.events import Play
from planner.programs.library import Library
from planner.replay.assumptions import assumptions
from planner.replay.dry_run import allocated_peaks
from planner.replay.fast_replay import Loaded, Peaks, Script, loaded, peaks, script
from planner.replay.kernels import REPLAYED_FRACTIONS, KernelPolicy, is_large_convolution
from planner.request import GenerationRequest


def fits_within(request: GenerationRequest, card: Card, library: Library, memory_bytes: int) -> bool:
    """Tell whether the worst need, which decides over ``fits``, is at most this much memory.

    Where something is assumed, all that kernels could take is replayed, until one replay needs too much.

    Raises:
        NoProgram: no program was compiled for what the request asks for.
    """
    form, policy = request.replay_form(), KernelPolicy.of(card.compute_capability)
    room = memory_bytes - card.context_bytes
    if peaks_of(library, form, policy).reserved_bytes > room:
        return False
    if not assumed(request, card, library):
        return True
    return all(peaks_of(library, form, one).reserved_bytes <= room for one in _possible(library, form, policy))


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
    policy = KernelPolicy.of(card.compute_capability)
    return peaks_of(library, request.replay_form(), policy).reserved_bytes + card.context_bytes


def need_bound_bytes(request: GenerationRequest, card: Card, library: Library, *, workspace: bool = True) -> int:
    """Compute a lower bound of the need; without `workspace`, a lower bound of the minimum too.

    It takes a quarter of a millisecond, for it replays no allocator.

    Raises:
        NoProgram: no program was compiled for what the request asks for.
    """
    policy = KernelPolicy.of(card.compute_capability)
    policy = policy if workspace else policy.without_workspace()
    return _bound(library, request.replay_form(), policy) + card.context_bytes


@lru_cache(maxsize=16384)
def _has_large(library: Library, request: GenerationRequest) -> bool:
    return bool(is_large_convolution(events_of(library, request).convolutions).any())


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
    distinct: dict[bytes, KernelPolicy] = {}
    for fraction, are_alike in itertools.product(reversed(REPLAYED_FRACTIONS), (True, False)):
        kernels = replace(policy, workspace_fraction=fraction, are_large_like_others=are_alike)
        distinct.setdefault(kernels.convolution_bytes(convolutions).tobytes(), kernels)
    return tuple(distinct.values())


@lru_cache(maxsize=8)
def _loaded(library: Library, request: GenerationRequest) -> Loaded:
    return loaded(events_of(library, request))


def script_of(
    library: Library, request: GenerationRequest, policy: KernelPolicy, play: Play = "ends", *, has_end: bool = False
) -> Script:
    """Prepare the request's events for `fast_replay.peaks`; `has_end` also for a capacity."""
    # The weights that are loaded depend on these two fields alone.
    start = _loaded(library, GenerationRequest(safety_checker=request.safety_checker, offload=request.offload))
    return script(events_of(library, request, play), policy, start, has_end=has_end)


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
