"""What a request needs of a card by the dry run, number by number and kept: a boundary or a map asks for hundreds.

Nothing is estimated: each is what `planner.fit` answers, or a bound and said to be one.
"""

from __future__ import annotations

import itertools
from dataclasses import replace
from functools import lru_cache

from planner.cards.lookup import Card
from planner.programs.assemble import TILE, Play, events_of
from planner.programs.library import MAX_TRACED_STEPS, Library
from planner.replay.dry_run import (
    REPLAYED_FRACTIONS,
    KernelPolicy,
    allocated_peaks,
    assumptions,
    is_large_convolution,
)
from planner.replay.fast_replay import Loaded, Peaks, Script, loaded, peaks, script
from planner.request import GenerationRequest


def fits_within(request: GenerationRequest, card: Card, library: Library, memory_bytes: int) -> bool:
    """Tell whether the need that decides over ``fits`` is at most this much memory.

    That is the worst of all that kernels could take, where something is assumed; the first that is too much decides.

    Raises:
        NoProgram: no program was compiled for what the request asks for.
    """
    request, policy = same_work(request), KernelPolicy.of(card.compute_capability)
    room = memory_bytes - card.context_bytes
    if peaks_of(library, request, policy).reserved_bytes > room:
        return False
    if not assumed(request, card, library):
        return True
    return all(peaks_of(library, request, one).reserved_bytes <= room for one in _possible(library, request, policy))


def assumed(request: GenerationRequest, card: Card, library: Library) -> tuple[str, ...]:
    """List what the dry run takes for granted of this request on this GPU.

    Raises:
        NoProgram: no program was compiled for what the request asks for.
    """
    has_large = _has_large(library, same_work(request))
    return tuple(assumptions(request, card.compute_capability, has_large=has_large))


def need_bytes(request: GenerationRequest, card: Card, library: Library) -> int:
    """The card memory at which the request runs with preferred kernels, by the dry run.

    Raises:
        NoProgram: no program was compiled for what the request asks for.
    """
    policy = KernelPolicy.of(card.compute_capability)
    return peaks_of(library, same_work(request), policy).reserved_bytes + card.context_bytes


def least_need_bytes(request: GenerationRequest, card: Card, library: Library, *, workspace: bool = True) -> int:
    """A bound in a quarter of a millisecond, which the need is never below; without workspace, nor is the minimum.

    Raises:
        NoProgram: no program was compiled for what the request asks for.
    """
    policy = KernelPolicy.of(card.compute_capability)
    policy = policy if workspace else policy.without_workspace()
    return _bound(library, same_work(request), policy) + card.context_bytes


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


def same_work(request: GenerationRequest) -> GenerationRequest:
    """One request for all that allocate the same; an upright image is a lying one, unless it is cut into tiles."""
    request = replace(
        request.canonical(),
        prompt_tokens=1,
        guidance_scale=7.5 if request.unet_batch > request.batch else 1.0,
        steps=min(request.steps, MAX_TRACED_STEPS),
    )
    if request.vae_tiling and max(request.latent_height, request.latent_width) > TILE:
        return request
    low, high = sorted((request.width, request.height))
    return replace(request, width=high, height=low)


@lru_cache(maxsize=16384)
def _possible(library: Library, request: GenerationRequest, policy: KernelPolicy) -> tuple[KernelPolicy, ...]:
    """Give the kernels at each of `REPLAYED_FRACTIONS`, the largest first, and once where several take the same."""
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
    """Prepare the request's events for `fast_replay.peaks`; `has_end` for a replay within a capacity as well."""
    # What is loaded depends on these two alone.
    start = _loaded(library, GenerationRequest(safety_checker=request.safety_checker, offload=request.offload))
    return script(events_of(library, request, play), policy, start, has_end=has_end)


@lru_cache(maxsize=16384)
def peaks_of(library: Library, request: GenerationRequest, policy: KernelPolicy, *, is_thrifty: bool = False) -> Peaks:
    """What it reserves and allocates at most where memory has no end; `is_thrifty` flushes before it asks for any."""
    found = peaks(script_of(library, request, policy), is_thrifty=is_thrifty)
    assert found is not None, "memory without end ran out"
    return found


@lru_cache(maxsize=16384)
def _bound(library: Library, request: GenerationRequest, policy: KernelPolicy) -> int:
    [peak] = allocated_peaks(library, request, [(request.latent_height, request.latent_width)], policy)
    return int(peak)
