"""Searches that remedies need: the largest batch, the nearest size and the next card on which a request fits.

They ask only whether it fits, which takes two dry runs; the least memory in which it still runs takes ten.
"""

from collections.abc import Callable
from dataclasses import replace
from functools import lru_cache

from planner.dryrun import KernelPolicy, assumptions, dry_run, live_peaks
from planner.flatten import events_of
from planner.gpus import CATALOGUE, Card, shared_card
from planner.program import Library
from planner.request import MIN_SIDE, VAE_SCALE_FACTOR, GenerationRequest
from planner.shares import share_of
from planner.units import GIB


@lru_cache(maxsize=512)
def _reserved_bytes(library: Library, request: GenerationRequest, policies: tuple[KernelPolicy, ...]) -> int:
    events = events_of(library, request)
    return max(dry_run(events, policy).peak_reserved_bytes for policy in policies)


def fits(request: GenerationRequest, card: Card, library: Library) -> bool:
    """Whether the dry run's verdict is ``fits``.

    Raises:
        NoProgram: no program was compiled for what the request asks for.
    """
    policy = KernelPolicy.of(card.compute_capability)
    assumes = bool(assumptions(request, card.compute_capability))
    canonical = replace(request.canonical(), prompt_tokens=1)
    reserved = _reserved_bytes(library, canonical, (policy, policy.cautious()) if assumes else (policy,))
    return reserved + card.context_bytes <= card.usable_bytes


def may_run(request: GenerationRequest, card: Card, library: Library) -> bool:
    """Whether the tensors alone leave the card any hope; where they do not, the verdict is ``no``.

    Raises:
        NoProgram: no program was compiled for what the request asks for.
    """
    most = max(card.usable_bytes - card.context_bytes, card.usable_high_bytes - card.context_low_bytes)
    return max(live_peaks(library, request).values()) <= most


def _largest(low: int, high: int, is_enough: Callable[[int], bool]) -> int | None:
    """The largest value from `low` below `high` that is enough, as far as bisection sees; None where `low` is not."""
    if low >= high or not is_enough(low):
        return None
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if is_enough(middle) else (low, middle)
    return low


def largest_batch(request: GenerationRequest, card: Card, library: Library) -> int | None:
    """The largest smaller batch that fits, or None where not even a single image does."""
    return _largest(1, request.batch, lambda batch: fits(replace(request, batch=batch), card, library))


def nearest_size(request: GenerationRequest, card: Card, library: Library) -> tuple[int, int] | None:
    """The largest smaller width and height that fit, multiples of 8 of the same shape as near as those come."""
    columns, rows = request.latent_width, request.latent_height
    longest, shortest = max(columns, rows), MIN_SIDE // VAE_SCALE_FACTOR

    def at(long: int) -> tuple[int, int]:
        width, height = (max(shortest, round(side * long / longest)) for side in (columns, rows))
        return width * VAE_SCALE_FACTOR, height * VAE_SCALE_FACTOR

    def is_enough(long: int) -> bool:
        width, height = at(long)
        return fits(replace(request, width=width, height=height), card, library)

    long = _largest(shortest, longest, is_enough)
    return None if long is None else at(long)


def next_card(request: GenerationRequest, card: Card, library: Library) -> Card | None:
    """The smallest larger card of the catalogue on which the request fits, shared by as many as this one, or None.

    Of cards of the same size, to a GiB, it is the slowest: there is no price list, and the faster one is dearer.
    """
    workers = share_of(card)[1]
    by_size = sorted(CATALOGUE, key=lambda whole: (whole.usable_bytes // GIB, whole.float16_tflops or 0))
    shares = (shared_card(whole, workers) for whole in by_size)
    larger = (share for share in shares if share.usable_bytes > card.usable_bytes)
    return next((share for share in larger if fits(request, share, library)), None)
