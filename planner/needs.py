"""What a request needs of a card by the dry run, number by number and kept: a boundary or a map asks for hundreds.

Nothing is estimated: each is what `planner.fit` answers, or a bound and said to be one.
"""

from __future__ import annotations

from dataclasses import replace
from functools import lru_cache

import numpy as np

from planner.dryrun import (
    LEAST_STEP,
    KernelPolicy,
    allocated_peaks,
    assumptions,
)
from planner.flatten import TILE, Play, events_of
from planner.gpus import Card
from planner.lean import Loaded, Peaks, Script, loaded, peaks, script
from planner.program import MAX_TRACED_STEPS, Library
from planner.request import GenerationRequest


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


def runs_within(request: GenerationRequest, card: Card, library: Library, memory_bytes: int) -> bool:
    """Whether the minimum that `planner.fit` finds is within so much card memory.

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
def _known(library: Library, request: GenerationRequest, policy: KernelPolicy) -> list[int | float]:
    """The most capacity that is known to be too little, and the least that is known to be enough."""
    return [-1, float("inf")]


@lru_cache(maxsize=16384)
def _differ(library: Library, request: GenerationRequest, one: KernelPolicy, other: KernelPolicy) -> bool:
    """Whether the two take another workspace for any convolution of the request."""
    convolutions = events_of(library, request).convolutions
    return not np.array_equal(one.convolution_bytes(convolutions), other.convolution_bytes(convolutions))


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


@lru_cache(maxsize=8)
def _loaded(library: Library, request: GenerationRequest) -> Loaded:
    return loaded(events_of(library, request))


def _start(library: Library, request: GenerationRequest) -> Loaded:
    # What is loaded depends on these two alone.
    return _loaded(library, GenerationRequest(safety_checker=request.safety_checker, offload=request.offload))


@lru_cache(maxsize=16384)
def _reserved(library: Library, request: GenerationRequest, policy: KernelPolicy) -> int:
    return _without_end(script(events_of(library, request), policy, _start(library, request))).reserved_bytes


def _without_end(played: Script, *, is_thrifty: bool = False) -> Peaks:
    found = peaks(played, is_thrifty=is_thrifty)
    assert found is not None, "memory without end ran out"
    return found


@lru_cache(maxsize=16384)
def _bound(library: Library, request: GenerationRequest, policy: KernelPolicy) -> int:
    [peak] = allocated_peaks(library, request, [(request.latent_height, request.latent_width)], policy)
    return int(peak)


@lru_cache(maxsize=4096)
def _thrifty(library: Library, request: GenerationRequest, policy: KernelPolicy) -> Peaks:
    bare = policy.without_workspace()
    return _without_end(script(events_of(library, request), bare, _start(library, request)), is_thrifty=True)


@lru_cache(maxsize=16384)
def _ends(library: Library, request: GenerationRequest, policy: KernelPolicy, play: Play, steps: int) -> bool:
    """Whether the history comes to its end within so many steps of 16 MiB."""
    return peaks(_script(library, request, policy, play), steps * LEAST_STEP) is not None


@lru_cache(maxsize=4)
def _script(library: Library, request: GenerationRequest, policy: KernelPolicy, play: Play) -> Script:
    return script(events_of(library, request, play), policy, _start(library, request), has_end=True)


@lru_cache(maxsize=16384)
def _is_enough(library: Library, request: GenerationRequest, policy: KernelPolicy, capacity_bytes: int) -> bool:
    """Whether `planner.dryrun.least_capacity_bytes` is within this capacity: its search, ended once that is decided."""
    enough_bytes = _reserved(library, request, policy)
    if enough_bytes <= capacity_bytes:
        return True

    def ends(steps: int, play: Play = "first") -> bool:
        return _ends(library, request, policy, play, steps)

    thrifty = _thrifty(library, request, policy)
    limit, enough = capacity_bytes // LEAST_STEP, -(-enough_bytes // LEAST_STEP)
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
    gap = 1
    while low < limit and high < enough and not ends(high, "ends"):
        low, high, gap = high, min(enough, high + gap), 2 * gap
    while gap > 1 and high - low > 1 and low < limit:
        middle = (low + high) // 2
        low, high = (low, middle) if ends(middle, "ends") else (middle, high)
    return low < limit and high <= limit
