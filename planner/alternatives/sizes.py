"""Search the largest sizes and batch that fit a GPU, and the smallest GPU that fits.

All answers are the dry run's, on the grid of sizes that the pipeline works on. One step is 8 pixels of the shorter
side; the longer side is the ratio times it, rounded down to a multiple of 8. Whether a size fits is not monotonic: a
larger size may reserve less. So sizes are tried from above, from where a lower bound of the need first fits, and a size
that fits between two that do not is found.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from functools import lru_cache
from math import gcd

from planner.answer import Basis
from planner.cards.lookup import Card
from planner.errors import NoKernelRule
from planner.programs.files import shipped
from planner.programs.library import Library
from planner.replay.fast_replay import warm_up
from planner.replay.kernels import Capability, KernelPolicy
from planner.replay.peaks import Needs, assumed, fits_within, need_bound, needs_of
from planner.request import MAX_BATCH, MAX_SIDE, MIN_SIDE, VAE_SCALE_FACTOR, GenerationRequest

# The ratios of width to height.
RATIOS: dict[str, tuple[int, int]] = {"square": (1, 1), "3:2": (3, 2), "16:9": (16, 9), "9:16": (9, 16)}
# The reserved peak may differ by gigabytes from one size to the next and back, as blocks happen to be cut. So a
# boundary is sought from above: `LOOK` steps one by one, then every hundredth part, and `LOOK` steps beyond the first
# that fits.
LOOK, PARTS = 8, 100

_FIRST_STEP = MIN_SIDE // VAE_SCALE_FACTOR


@dataclass(frozen=True, kw_only=True)
class Size:
    """Hold a size in pixels; `is_limit` says that it is the largest allowed."""

    width: int
    height: int
    is_limit: bool = False

    def __str__(self) -> str:
        return f"{self.width}×{self.height}"


@dataclass(frozen=True, kw_only=True)
class Batch:
    """Hold a batch, 0 where no image fits; `is_limit` says that it is the largest allowed."""

    images: int
    is_limit: bool = False


@dataclass(frozen=True, kw_only=True)
class CardSizes:
    """Hold what fits one GPU: the largest size of each of `RATIOS`, and the largest batch.

    A size is None where no size of the ratio fits. Where no rule covers the GPU's kernels, nothing is known and
    `reason` says why.
    """

    card: Card
    sizes: dict[str, Size | None]
    batch: Batch
    basis: Basis = "dry-run"
    reason: str = ""


def size_at(ratio: tuple[int, int], step: int) -> tuple[int, int]:
    """Compute width and height in pixels at this many steps of 8 pixels along the shorter side.

    >>> size_at((16, 9), 90), size_at((9, 16), 90)
    ((1280, 720), (720, 1280))
    """
    width, height = ratio
    shorter = min(width, height)
    return width * step // shorter * VAE_SCALE_FACTOR, height * step // shorter * VAE_SCALE_FACTOR


def ratio_of(request: GenerationRequest) -> tuple[int, int]:
    """Find the ratio of width to height.

    It is one of `RATIOS` that has the request's size on its grid, else the size's own.

    >>> ratio_of(GenerationRequest(width=1232, height=696)), ratio_of(GenerationRequest(width=1024, height=768))
    ((16, 9), (4, 3))
    """
    width, height = request.latent_width, request.latent_height
    pixels = width * VAE_SCALE_FACTOR, height * VAE_SCALE_FACTOR
    named = (ratio for ratio in RATIOS.values() if size_at(ratio, min(width, height)) == pixels)
    return next(named, (width // gcd(width, height), height // gcd(width, height)))


def steps_of(ratio: tuple[int, int], most_side: int = MAX_SIDE) -> range:
    """List the steps at which both sides are allowed, up to `most_side` pixels."""
    last = most_side // VAE_SCALE_FACTOR
    while max(size_at(ratio, last)) > most_side:
        last -= 1
    return range(_FIRST_STEP, last + 1)


def fits(request: GenerationRequest, card: Card, library: Library) -> bool:
    """Tell whether `planner.fit` says ``fits`` by the dry run.

    It says ``unknown`` where no rule covers the GPU's kernels.

    Raises:
        NoProgram: no program was compiled for what the request asks for.
    """
    try:
        return fits_within(request, card, library, card.usable_bytes)
    except NoKernelRule:
        return False


class _Line:
    """Hold what was asked of the requests along one line, of sizes or of batches, with kernels of one policy.

    All GPUs whose kernels are alike ask the same line. `at` gives the request of a step.
    """

    def __init__(self, at: Callable[[int], GenerationRequest], policy: KernelPolicy, library: Library):
        self._at, self._policy, self._library = at, policy, library
        self._bounds: dict[int, int] = {}
        self._needs: dict[int, Needs] = {}
        self._assumed: dict[tuple[int, Capability], bool] = {}

    def may_fit(self, step: int, card: Card) -> bool:
        """Tell whether the lower bound of the need fits the GPU."""
        if step not in self._bounds:
            self._bounds[step] = need_bound(self._at(step), self._policy, self._library)
        return self._bounds[step] + card.context_bytes <= card.usable_bytes

    def fits(self, step: int, card: Card) -> bool:
        """Tell what `fits` tells of the step's request."""
        needs = self._needs.get(step)
        if needs is None:
            needs = self._needs[step] = needs_of(self._library, self._at(step).replay_form(), self._policy)
        room = card.usable_bytes - card.context_bytes
        if needs.preferred_bytes > room:
            return False
        return not self._is_assumed(step, card) or needs.is_worst_within(room)

    def boundary(self, steps: range, card: Card) -> int | None:
        """Find the step that `boundary` finds for this GPU."""
        return boundary(steps, lambda step: self.may_fit(step, card), lambda step: self.fits(step, card))

    def _is_assumed(self, step: int, card: Card) -> bool:
        key = step, card.compute_capability
        if key not in self._assumed:
            self._assumed[key] = bool(assumed(self._at(step), card, self._library))
        return self._assumed[key]


def boundary(steps: range, may_fit: Callable[[int], bool], does_fit: Callable[[int], bool]) -> int | None:
    """Find a step that fits while the next does not, or None.

    `may_fit` is cheap, and false only where `does_fit` is false. From the last step that may fit, the search goes down:
    `LOOK` steps one by one, then every hundredth part. Then it tries `LOOK` steps beyond the first that fits.
    """
    if not steps:
        return None
    first, last = steps[0], steps[-1]
    top = last if may_fit(last) else _bisected(first - 1, last, may_fit)
    # The bound is not monotonic in the size either.
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
    """Bisect for a step that holds while the next does not.

    `low` is taken to hold, and `high` not to.
    """
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if holds(middle) else (low, middle)
    return low


def largest_size(
    request: GenerationRequest, card: Card, ratio: tuple[int, int], library: Library, below: int | None = None
) -> Size | None:
    """Find the largest size of this ratio at which the request fits, or None.

    With `below`, only sizes of fewer steps are searched. The request's own size does not matter.

    Raises:
        NoProgram: no program was compiled for what the request asks for.
    """
    return _largest_size(replace(request, width=512, height=512).replay_form(), card, ratio, library, below)


@lru_cache(maxsize=1024)
def _largest_size(
    request: GenerationRequest, card: Card, ratio: tuple[int, int], library: Library, below: int | None
) -> Size | None:
    every = steps_of(ratio, request.most_side)
    steps = every if below is None else every[: max(0, below - every[0])]
    step = _line_of_sizes(request, ratio, KernelPolicy.of(card.compute_capability, request.dtype), library).boundary(
        steps, card
    )
    if step is None:
        return None
    width, height = size_at(ratio, step)
    return Size(width=width, height=height, is_limit=step == every[-1])


@lru_cache(maxsize=256)
def _line_of_sizes(request: GenerationRequest, ratio: tuple[int, int], policy: KernelPolicy, library: Library) -> _Line:
    def at(step: int) -> GenerationRequest:
        width, height = size_at(ratio, step)
        return replace(request, width=width, height=height)

    return _Line(at, policy, library)


def largest_batch(request: GenerationRequest, card: Card, library: Library, below: int = MAX_BATCH + 1) -> Batch:
    """Find the largest batch at which the request fits at its own size.

    With `below`, only batches of fewer images are searched. The request's own batch does not matter.

    Raises:
        NoProgram: no program was compiled for what the request asks for.
    """
    return _largest_batch(replace(request, batch=1).replay_form(), card, library, below)


@lru_cache(maxsize=1024)
def _largest_batch(request: GenerationRequest, card: Card, library: Library, below: int) -> Batch:
    line = _line_of_batches(request, KernelPolicy.of(card.compute_capability, request.dtype), library)
    images = line.boundary(range(1, min(below, request.most_batch + 1)), card)
    return Batch(images=images or 0, is_limit=images == request.most_batch)


@lru_cache(maxsize=64)
def _line_of_batches(request: GenerationRequest, policy: KernelPolicy, library: Library) -> _Line:
    return _Line(lambda batch: replace(request, batch=batch), policy, library)


def smaller_size(request: GenerationRequest, card: Card, library: Library) -> Size | None:
    """Find the largest size below the request's own, of the same ratio, at which it fits.

    Raises:
        NoProgram: no program was compiled for what the request asks for.
    """
    ratio, own = ratio_of(request), min(request.latent_width, request.latent_height)
    found = largest_size(request, card, ratio, library)
    if found and min(found.width, found.height) // VAE_SCALE_FACTOR >= own:
        # A larger size than the request's fits although its own does not.
        found = largest_size(request, card, ratio, library, own)
    return found


def smaller_batch(request: GenerationRequest, card: Card, library: Library) -> int:
    """Find the largest batch below the request's own at which it fits, or 0.

    Raises:
        NoProgram: no program was compiled for what the request asks for.
    """
    found = largest_batch(request, card, library).images
    return found if found < request.batch else largest_batch(request, card, library, request.batch).images


def sizes(
    request: GenerationRequest,
    card: Card,
    library: Library | None = None,
    report: Callable[[float], None] | None = None,
) -> CardSizes:
    """Find the largest size of each ratio and the largest batch that fit this GPU.

    The request's size matters only for the batch. `report` is called with the progress, from 0 to 1.

    Raises:
        NoProgram: no program was compiled for what the request asks for.
    """
    library = library or shipped()
    warm_up()
    try:
        KernelPolicy.of(card.compute_capability, request.dtype)
    except NoKernelRule as error:
        return CardSizes(card=card, sizes=dict.fromkeys(RATIOS), batch=Batch(images=0), reason=str(error))
    found: dict[str, Size | None] = {}
    for done, (name, ratio) in enumerate(RATIOS.items()):
        found[name] = largest_size(request, card, ratio, library)
        if report:
            report((done + 1) / (len(RATIOS) + 1))
    batch = largest_batch(request, card, library)
    if report:
        report(1.0)
    return CardSizes(card=card, sizes=found, batch=batch)


def smallest_card(request: GenerationRequest, cards: Iterable[Card], library: Library | None = None) -> Card | None:
    """Find the GPU with the least usable memory that fits the request, or None.

    Of GPUs with equal memory, the first is taken.

    Raises:
        NoProgram: no program was compiled for what the request asks for.
    """
    library = library or shipped()
    by_memory = sorted(cards, key=lambda card: card.usable_bytes)
    return next((card for card in by_memory if fits(request, card, library)), None)
