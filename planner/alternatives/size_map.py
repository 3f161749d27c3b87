"""Map verdicts by the dry run: sizes against GPUs, or sizes against batches on one GPU.

Every verdict is `planner.fit`'s, and so is every headroom except those marked as bounds. Cells share replays: those of
GPUs whose kernels are alike, and those of portrait and landscape images.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from planner.answer import MINIMUM_STEP, Verdict
from planner.cards.lookup import Card
from planner.programs.library import Library
from planner.replay.fast_replay import warm_up
from planner.replay.minimum import may_run
from planner.replay.peaks import fits_within, need_bound_bytes, need_bytes
from planner.request import MAX_BATCH, MAX_SIDE, MIN_SIDE, VAE_SCALE_FACTOR, GenerationRequest

# The shorter side of each column, in pixels, in finer steps where sizes are usual.
SHORTER_SIDES = (
    *range(256, 1024, 64),
    *range(1024, 1536, 128),
    *range(1536, 2048, 256),
    *range(2048, 4096, 1024),
    *range(4096, MAX_SIDE + 1, 4096),
)
# Fewer columns, for a map in which every cell takes a replay of its own.
FEW_SIDES = (256, 384, 512, 640, 768, 896, 1024, 1280, 1536, 1792, 2048, 3072, 4096)
BATCHES = (1, 2, 3, 4, 6, 8, 12, 16, 32, 64, MAX_BATCH)


@dataclass(frozen=True, kw_only=True)
class Cell:
    """Hold one verdict of the map.

    `headroom_bytes` is signed, and an upper bound of the headroom where `is_bound`.
    """

    request: GenerationRequest
    card: Card
    verdict: Verdict
    headroom_bytes: int
    is_bound: bool = False


def scaled(request: GenerationRequest, shorter_side: int, *, is_square: bool) -> GenerationRequest | None:
    """Scale the request to this shorter side, square or of its own ratio.

    None where a side breaks its limit.
    """
    width, height = (1, 1) if is_square else (request.latent_width, request.latent_height)
    step = shorter_side // VAE_SCALE_FACTOR
    width, height = (side * step // min(width, height) * VAE_SCALE_FACTOR for side in (width, height))
    if max(width, height) > request.most_side or min(width, height) < MIN_SIDE:
        return None
    return replace(request, width=width, height=height)


def columns(
    request: GenerationRequest, sides: Sequence[int] = SHORTER_SIDES, *, is_square: bool
) -> list[GenerationRequest]:
    """Scale the request to each allowed size, the smallest first.

    Its own size is among them if the ratio is its own.
    """
    own = min(request.effective_width, request.effective_height)
    if not is_square or request.effective_width == request.effective_height:
        sides = sorted({*sides, own})
    found = (scaled(request, side, is_square=is_square) for side in sides)
    return [one for one in found if one is not None]


def cell(request: GenerationRequest, card: Card, library: Library, *, exact: bool = True) -> Cell:
    """Compute the verdict and the headroom of a request on a GPU.

    Unless `exact`, a cell whose lower bound without any workspace is too much is not replayed: its verdict is certain,
    and its headroom a bound.

    Raises:
        NoProgram: no program was compiled for what the request asks for.
    """
    usable = card.usable_bytes
    is_hopeless = need_bound_bytes(request, card, library, workspace=False) > card.best_bytes + MINIMUM_STEP
    if is_hopeless and not exact:
        bound = need_bound_bytes(request, card, library)
        return Cell(request=request, card=card, verdict="no", headroom_bytes=usable - bound, is_bound=True)
    need = need_bytes(request, card, library)
    if fits_within(request, card, library, usable):
        verdict = "fits"
    elif is_hopeless:
        verdict = "no"
    else:
        verdict = "tight" if may_run(request, card, library) else "no"
    return Cell(request=request, card=card, verdict=verdict, headroom_bytes=usable - need)


def left_out(rows: Sequence[Sequence[Cell]]) -> tuple[int, int]:
    """Count the columns to leave out: the first that fit every row, the last that run on none.

    One column of each kind stays, so that the map shows where they end.
    """
    columns = [{cell.verdict for cell in column} for column in zip(*rows, strict=True)]
    fitting = next((place for place, verdicts in enumerate(columns) if verdicts != {"fits"}), len(columns))
    hopeless = next((place for place, verdicts in enumerate(reversed(columns)) if verdicts != {"no"}), len(columns))
    return max(0, fitting - 1), max(0, hopeless - 1)


Report = Callable[[float], None]


def by_card(
    requests: Sequence[GenerationRequest], cards: Sequence[Card], library: Library, report: Report | None = None
) -> list[list[Cell]]:
    """Map each request on each GPU, a row for each GPU, all cells exact.

    `report` is called with the progress, from 0 to 1.

    Raises:
        NoProgram: no program was compiled for what the requests ask for.
    """
    warm_up()
    columns = []
    order = _halving(sorted(range(len(cards)), key=lambda place: cards[place].best_bytes))
    for done, request in enumerate(requests):
        # Where kernels are alike, the verdict of the middle GPU often decides for those above or below it.
        cells = {place: cell(request, cards[place], library) for place in order}
        columns.append([cells[place] for place in range(len(cards))])
        if report:
            report((done + 1) / len(requests))
    return [list(row) for row in zip(*columns, strict=True)]


def _halving(places: list[int]) -> list[int]:
    """Order the places: the middle first, then the middles of both halves, and so on."""
    found, parts = [], [places]
    while parts:
        part = parts.pop(0)
        if part:
            middle = len(part) // 2
            found.append(part[middle])
            parts += [part[:middle], part[middle + 1 :]]
    return found


def by_batch(
    requests: Sequence[GenerationRequest],
    batches: Sequence[int],
    card: Card,
    library: Library,
    report: Report | None = None,
) -> list[list[Cell]]:
    """Map each request at each batch, a row for each batch.

    A cell that cannot run has a bound for its headroom. `report` is called with the progress, from 0 to 1.

    Raises:
        NoProgram: no program was compiled for what the requests ask for.
    """
    warm_up()
    rows = []
    for done, batch in enumerate(batches):
        row = [replace(request, batch=batch) for request in requests]
        rows.append([cell(request, card, library, exact=False) for request in row])
        if report:
            report((done + 1) / len(batches))
    return rows
