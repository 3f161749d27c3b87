"""What a request reserves with preferred kernels and no end of memory: one number of a dry run, many times over.

A boundary or a map asks for hundreds of them. So the weights, which lie the same at every size, are loaded once, and a
workspace that finds room is passed over: taken and given back, it leaves everything as it was. Nothing is estimated.
"""

from __future__ import annotations

from dataclasses import replace
from functools import lru_cache
from typing import NamedTuple

import numpy as np

from planner.allocator import SMALL_SIZE, Block, CachingAllocator, Pool
from planner.dryrun import (
    ATTENTION,
    BIRTH,
    CONVOLUTION,
    DEATH,
    KernelPolicy,
    allocated_peaks,
    assumptions,
    least_capacity_bytes,
    thrifty_run,
)
from planner.flatten import TILE, events_of
from planner.gpus import Card
from planner.program import MAX_TRACED_STEPS, Events, Library, Op
from planner.request import GenerationRequest

_PRODUCT, _EMPTY_CACHE = int(Op.PRODUCT), int(Op.EMPTY_CACHE)


def worst_need_bytes(request: GenerationRequest, card: Card, library: Library) -> int:
    """The card memory that decides over ``fits`` by the dry run: the upper end of the need where something is assumed.

    Raises:
        NoProgram: no program was compiled for what the request asks for.
    """
    request, policy = same_work(request), KernelPolicy.of(card.compute_capability)
    reserved = _reserved(library, request, policy)
    if assumptions(request, card.compute_capability) and _differ(library, request, policy, policy.cautious()):
        reserved = max(reserved, _reserved(library, request, policy.cautious()))
    return reserved + card.context_bytes


def need_bytes(request: GenerationRequest, card: Card, library: Library) -> int:
    """The card memory at which the request runs with preferred kernels, by the dry run.

    Raises:
        NoProgram: no program was compiled for what the request asks for.
    """
    return _reserved(library, same_work(request), KernelPolicy.of(card.compute_capability)) + card.context_bytes


def least_need_bytes(request: GenerationRequest, card: Card, library: Library, *, workspace: bool = True) -> int:
    """A bound in a quarter of a millisecond, which the need is never below; without workspace, nor is the minimum.

    Raises:
        NoProgram: no program was compiled for what the request asks for.
    """
    policy = KernelPolicy.of(card.compute_capability)
    policy = policy if workspace else policy.without_workspace()
    return _bound(library, same_work(request), policy) + card.context_bytes


def minimum_bytes(request: GenerationRequest, card: Card, library: Library) -> int:
    """The least card memory at which the request still runs, as `planner.fit` finds it.

    Raises:
        NoProgram: no program was compiled for what the request asks for.
    """
    return _minimum(library, same_work(request), KernelPolicy.of(card.compute_capability)) + card.context_bytes


@lru_cache(maxsize=16384)
def _differ(library: Library, request: GenerationRequest, one: KernelPolicy, other: KernelPolicy) -> bool:
    """Whether the two take another workspace for any convolution of the request."""
    convolutions = events_of(library, request).convolutions
    return not np.array_equal(one.convolution_bytes(convolutions), other.convolution_bytes(convolutions))


def same_work(request: GenerationRequest) -> GenerationRequest:
    """One request for all that allocate the same at every size and batch; upright and lying images are one but in tiles."""
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


class _Loaded(NamedTuple):
    """The allocator once the weights are in place: how much was played, and what its segments have left."""

    events: int
    births: int
    reserved_bytes: int
    next_address: int
    free: tuple[tuple[tuple[int, int], ...], ...]


def _pools(allocator: CachingAllocator) -> tuple[Pool, Pool]:
    return allocator.small, allocator.large


@lru_cache(maxsize=8)
def _loaded(library: Library, request: GenerationRequest) -> _Loaded:
    events = events_of(library, request)
    until = int(np.argmax(events.kinds == Op.LOADED)) + 1
    sizes = events.values[:until][events.kinds[:until] == Op.BIRTH].tolist()
    allocator = CachingAllocator()
    for size in sizes:
        allocator.malloc(size)
    free = tuple(tuple((block.address, block.size) for _, _, block in pool.free) for pool in _pools(allocator))
    return _Loaded(until, len(sizes), allocator.reserved_bytes, allocator._next_address, free)


def _allocator(loaded: _Loaded) -> CachingAllocator:
    """An allocator in this state; of the weights it knows only that they never leave."""
    allocator = CachingAllocator()
    allocator.reserved_bytes = allocator.peak_reserved_bytes = loaded.reserved_bytes
    allocator._next_address = loaded.next_address
    for pool, pieces in zip(_pools(allocator), loaded.free, strict=True):
        for address, size in pieces:
            piece = Block(pool, address, size)
            # What lies beside it is in use for ever, so its segment is never free as a whole.
            piece.previous = Block(pool, address, 0)
            pool.add(piece)
    return allocator


@lru_cache(maxsize=16384)
def _reserved(library: Library, request: GenerationRequest, policy: KernelPolicy) -> int:
    # What is loaded depends on these two alone.
    plain = GenerationRequest(safety_checker=request.safety_checker, offload=request.offload)
    return _replayed(events_of(library, request), policy, _loaded(library, plain))


def _replayed(events: Events, policy: KernelPolicy, loaded: _Loaded) -> int:
    """The reserved peak of these events, from where the weights are in place."""
    allocator = _allocator(loaded)
    malloc, free = allocator.malloc, allocator.free
    small, large = allocator.small.free, allocator.large.free
    convolutions = policy.convolution_bytes(events.convolutions).tolist()
    attentions = policy.attention_bytes(events.attentions).tolist()
    blocks: list[Block | None] = [None] * loaded.births
    has_handle, kernels = False, (CONVOLUTION, ATTENTION)
    kinds, values = (column[loaded.events :].tolist() for column in (events.kinds, events.values))
    for kind, value in zip(kinds, values, strict=True):
        if kind == BIRTH:
            blocks.append(malloc(value))
        elif kind == DEATH:
            free(blocks[value])
        elif kind in kernels:
            size = convolutions[value] if kind == CONVOLUTION else attentions[value]
            pieces = small if size <= SMALL_SIZE else large
            if size and not (pieces and pieces[-1][0] >= size):
                free(malloc(size))
        elif kind == _PRODUCT and not has_handle:
            malloc(policy.cublas_bytes)
            has_handle = True
        elif kind == _EMPTY_CACHE:
            allocator.empty_cache()
    return allocator.peak_reserved_bytes


@lru_cache(maxsize=16384)
def _bound(library: Library, request: GenerationRequest, policy: KernelPolicy) -> int:
    [peak] = allocated_peaks(library, request, [(request.latent_height, request.latent_width)], policy)
    return int(peak)


@lru_cache(maxsize=4096)
def _minimum(library: Library, request: GenerationRequest, policy: KernelPolicy) -> int:
    events, sketch = (events_of(library, request, play) for play in ("ends", "first"))
    enough = _reserved(library, request, policy)
    return least_capacity_bytes(events, sketch, policy, enough, thrifty_run(events, policy))
