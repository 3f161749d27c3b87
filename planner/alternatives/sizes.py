"""The other way round: the largest sizes and the largest batch that fit a card, and the smallest card that fits.

By the dry run alone, on the grid of sizes that the pipeline works on. One step is 8 pixels of the shorter side; the
longer one is the ratio times it, rounded down to a multiple of 8. A larger size does not always reserve more: sizes
are tried from above, where a bound leaves off, so that one which fits by luck between two that do not is found.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from functools import lru_cache
from math import gcd

from planner.answer import Basis
from planner.cards.lookup import Card
from planner.programs.library import Library, shipped
from planner.replay.peaks import fits_within, least_need_bytes, same_work
from planner.request import MAX_BATCH, MAX_SIDE, MIN_SIDE, VAE_SCALE_FACTOR, GenerationRequest

# Width to height.
RATIOS: dict[str, tuple[int, int]] = {"square": (1, 1), "3:2": (3, 2), "16:9": (16, 9), "9:16": (9, 16)}
# What a request reserves may differ by gigabytes from one size to the next and back, as blocks happen to be cut. So a
# boundary is sought from above: this many steps one by one, then every hundredth part, and this many beyond the find.
LOOK, PARTS = 8, 100

_FIRST_STEP = MIN_SIDE // VAE_SCALE_FACTOR


@dataclass(frozen=True, kw_only=True)
class Size:
    """A size in pixels; `is_limit` says that it is the largest there is, so nothing larger was tried."""

    width: int
    height: int
    is_limit: bool = False

    def __str__(self) -> str:
        return f"{self.width}×{self.height}"


@dataclass(frozen=True, kw_only=True)
class Batch:
    """A batch, 0 where not even one image fits; `is_limit` says that it is the largest there is."""

    images: int
    is_limit: bool = False


@dataclass(frozen=True, kw_only=True)
class CardSizes:
    """What fits one card: the largest size of each of `RATIOS`, None where none fits, and the largest batch."""

    card: Card
    sizes: dict[str, Size | None]
    batch: Batch
    basis: Basis = "dry-run"


def size_at(ratio: tuple[int, int], step: int) -> tuple[int, int]:
    """Width and height in pixels of so many steps of 8 pixels along the shorter side.

    >>> size_at((16, 9), 90), size_at((9, 16), 90)
    ((1280, 720), (720, 1280))
    """
    width, height = ratio
    shorter = min(width, height)
    return width * step // shorter * VAE_SCALE_FACTOR, height * step // shorter * VAE_SCALE_FACTOR


def ratio_of(request: GenerationRequest) -> tuple[int, int]:
    """Width to height: one of `RATIOS` where it has the request's size on the grid, else the size's own.

    >>> ratio_of(GenerationRequest(width=1232, height=696)), ratio_of(GenerationRequest(width=1024, height=768))
    ((16, 9), (4, 3))
    """
    width, height = request.latent_width, request.latent_height
    pixels = width * VAE_SCALE_FACTOR, height * VAE_SCALE_FACTOR
    named = (ratio for ratio in RATIOS.values() if size_at(ratio, min(width, height)) == pixels)
    return next(named, (width // gcd(width, height), height // gcd(width, height)))


def steps_of(ratio: tuple[int, int]) -> range:
    """The steps at which both sides are allowed."""
    last = MAX_SIDE // VAE_SCALE_FACTOR
    while max(size_at(ratio, last)) > MAX_SIDE:
        last -= 1
    return range(_FIRST_STEP, last + 1)


def fits(request: GenerationRequest, card: Card, library: Library) -> bool:
    """Whether `planner.fit` says ``fits`` by the dry run.

    Raises:
        NoProgram: no program was compiled for what the request asks for.
    """
    return fits_within(request, card, library, card.usable_bytes)


def _may_fit(request: GenerationRequest, card: Card, library: Library) -> bool:
    return least_need_bytes(request, card, library) <= card.usable_bytes


def boundary(steps: range, may_fit: Callable[[int], bool], does_fit: Callable[[int], bool]) -> int | None:
    """A step that fits while the one after it does not, or is none; None where no step was found to fit.

    `may_fit` is cheap, and false only where `does_fit` is. From the last step that may fit on, some are tried in a row
    on the way down, then every hundredth part; and a few beyond the first that fits.
    """
    if not steps:
        return None
    first, last = steps[0], steps[-1]
    top = last if may_fit(last) else _bisected(first - 1, last, may_fit)
    # The bound is not everywhere larger at a larger size.
    top = max((step for step in range(top + 1, min(top + LOOK, last) + 1) if may_fit(step)), default=top)
    step, tried, stride = top, 0, max(1, top // PARTS)
    while step >= first and not does_fit(step):
        step, tried = step - (1 if tried < LOOK else stride), tried + 1
    found, step = step, max(step, first - 1) + 1
    while step <= min(max(found, first - 1) + LOOK, last):
        if may_fit(step) and does_fit(step):
            found = step
        step += 1
    return found if found >= first else None


def _bisected(low: int, high: int, holds: Callable[[int], bool]) -> int:
    """A step that holds while the next does not, where `low` is taken to hold and `high` not to."""
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if holds(middle) else (low, middle)
    return low


def anywhere(request: GenerationRequest) -> GenerationRequest:
    """One for all requests that allocate the same at every size, so that answers about sizes are kept once."""
    return same_work(replace(request, width=512, height=512))


def any_batch(request: GenerationRequest) -> GenerationRequest:
    """One for all requests that allocate the same at every batch, so that answers about batches are kept once."""
    return replace(same_work(request), batch=1)


@lru_cache(maxsize=1024)
def largest_size(
    request: GenerationRequest, card: Card, ratio: tuple[int, int], library: Library, below: int | None = None
) -> Size | None:
    """The largest size of this ratio at which the request fits; with `below`, of those of fewer steps.

    Raises:
        NoProgram: no program was compiled for what the request asks for.
    """

    def at(step: int) -> GenerationRequest:
        width, height = size_at(ratio, step)
        return replace(request, width=width, height=height)

    every = steps_of(ratio)
    steps = every if below is None else every[: max(0, below - every[0])]
    step = boundary(
        steps,
        lambda step: _may_fit(at(step), card, library),
        lambda step: fits(at(step), card, library),
    )
    if step is None:
        return None
    width, height = size_at(ratio, step)
    return Size(width=width, height=height, is_limit=step == every[-1])


@lru_cache(maxsize=1024)
def largest_batch(request: GenerationRequest, card: Card, library: Library, below: int = MAX_BATCH + 1) -> Batch:
    """The largest batch at which the request fits at its own size; with `below`, of those of fewer images.

    Raises:
        NoProgram: no program was compiled for what the request asks for.
    """

    def at(batch: int) -> GenerationRequest:
        return replace(request, batch=batch)

    images = boundary(
        range(1, below),
        lambda images: _may_fit(at(images), card, library),
        lambda images: fits(at(images), card, library),
    )
    return Batch(images=images or 0, is_limit=images == MAX_BATCH)


def smaller_size(request: GenerationRequest, card: Card, library: Library) -> Size | None:
    """The largest size of the request's own shape at which it fits, as `sizes` has it where that is a smaller one.

    Raises:
        NoProgram: no program was compiled for what the request asks for.
    """
    ratio, own = ratio_of(request), min(request.latent_width, request.latent_height)
    found = largest_size(anywhere(request), card, ratio, library)
    if found and min(found.width, found.height) // VAE_SCALE_FACTOR >= own:
        # One beyond the request's own fits by luck.
        found = largest_size(anywhere(request), card, ratio, library, own)
    return found


def smaller_batch(request: GenerationRequest, card: Card, library: Library) -> int:
    """The largest batch at which the request fits, as `sizes` has it where that is a smaller one; 0 for none.

    Raises:
        NoProgram: no program was compiled for what the request asks for.
    """
    found = largest_batch(any_batch(request), card, library).images
    return found if found < request.batch else largest_batch(any_batch(request), card, library, request.batch).images


def sizes(
    request: GenerationRequest,
    card: Card,
    library: Library | None = None,
    report: Callable[[float], None] | None = None,
) -> CardSizes:
    """The largest of everything that fits this card; the size of the request matters for the batch alone.

    `report` is told how much is done, 0 to 1, while it is found.

    Raises:
        NoProgram: no program was compiled for what the request asks for.
    """
    library = library or shipped()
    found: dict[str, Size | None] = {}
    for done, (name, ratio) in enumerate(RATIOS.items()):
        found[name] = largest_size(anywhere(request), card, ratio, library)
        if report:
            report((done + 1) / (len(RATIOS) + 1))
    batch = largest_batch(any_batch(request), card, library)
    if report:
        report(1.0)
    return CardSizes(card=card, sizes=found, batch=batch)


def smallest_card(request: GenerationRequest, cards: Iterable[Card], library: Library | None = None) -> Card | None:
    """The card of least usable memory that the request fits, of equal ones the first; None where it fits none.

    Raises:
        NoProgram: no program was compiled for what the request asks for.
    """
    library = library or shipped()
    by_memory = sorted(cards, key=lambda card: card.usable_bytes)
    return next((card for card in by_memory if fits(request, card, library)), None)
