"""Draw what fits on each GPU: the largest size of each shape and the largest batch."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

import streamlit as st

from pages.shared.controls.pickable import Offer, pickable_table
from pages.shared.frame.escape import plain, sentence
from planner.alternatives.sizes import RATIOS, Batch, CardSizes, Size, sizes, smallest_card
from planner.cards.lookup import CATALOGUE, Card
from planner.errors import NoProgram
from planner.programs.library import Library
from planner.request import GenerationRequest
from planner.units import gib

_BATCH = "Batch"
# Shorter work would end before anybody has read its progress bar.
SHOWN_AFTER_S = 0.5


def progress(text: str) -> tuple[Callable[[float], None], Callable[[], None]]:
    """Return functions that set a progress bar to a share from 0 to 1, and that remove it.

    The bar appears only if the work takes longer than `SHOWN_AFTER_S`.
    """
    place, began = st.empty(), time.monotonic()

    def report(done: float) -> None:
        if time.monotonic() - began > SHOWN_AFTER_S:
            place.progress(min(done, 1.0), text)

    def end() -> None:
        place.empty()

    return report, end


def _found(request: GenerationRequest, cards: Sequence[Card], library: Library) -> list[CardSizes]:
    report, end = progress("Looking for the largest that fits")
    try:
        return [
            sizes(request, card, library, lambda done, place=place: report((place + done) / len(cards)))
            for place, card in enumerate(cards)
        ]
    finally:
        end()


def _words(what: Size | Batch | None) -> str:
    """Write a cell of the table."""
    if what is None or not (isinstance(what, Size) or what.images):
        return "none"
    text = str(what) if isinstance(what, Size) else f"{what.images}"
    return f"{text}+" if what.is_limit else text


def smallest_sentence(request: GenerationRequest, cards: Sequence[Card], library: Library) -> str:
    """Name the smallest GPU that fits the plan, and a smaller one of the catalogue if any."""
    planned = f"{request.effective_width}×{request.effective_height}, batch {request.batch}"
    useful = [card for card in CATALOGUE if card.runs_pinned_torch]
    chosen, known = smallest_card(request, cards, library), smallest_card(request, useful, library)
    text = f"None of these GPUs fits the plan, {planned}."
    if chosen:
        text = (
            f"The smallest of these GPUs for the plan, {planned}: **{plain(chosen.name)}**, {gib(chosen.usable_bytes)}."
        )
    if known is None:
        return f"{text} No GPU of the catalogue does." if not chosen else text
    if chosen is None or known.usable_bytes < chosen.usable_bytes:
        return f"{text} The smallest GPU of the catalogue: **{plain(known.name)}**, {gib(known.usable_bytes)}."
    return text


def offer_of(one: CardSizes, column: str) -> Offer | None:
    """Return an offer of the size or batch in this column of a GPU's row, None if there is none."""
    if column == _BATCH:
        return Offer({"batch": one.batch.images}, f"batch {one.batch.images}") if one.batch.images else None
    size = one.sizes.get(column.lower())
    return Offer({"width": size.width, "height": size.height}, str(size)) if size else None


def _table(request: GenerationRequest, found: Sequence[CardSizes]) -> None:
    names = {name: name.capitalize() for name in RATIOS}
    rows = [
        {"GPU": one.card.name}
        | {shown: "unknown" if one.reason else _words(one.sizes[name]) for name, shown in names.items()}
        | {_BATCH: "unknown" if one.reason else _words(one.batch)}
        for one in found
    ]
    text = st.column_config.TextColumn
    config = {shown: text(shown, width=92, help=f"The largest {name} size that fits.") for name, shown in names.items()}
    size = f"{request.effective_width}×{request.effective_height}"
    pickable_table(
        "sizes-table",
        rows,
        [one.card.name for one in found],
        list(rows[0]),
        lambda row, column: offer_of(found[row], column),
        "The largest sizes and the largest batch that fit each GPU",
        {
            "GPU": text("GPU", width=104, pinned=True, help="Judged by its usable memory, less its CUDA context."),
            **config,
            _BATCH: text(_BATCH, width=64, help=f"The largest batch that fits at the plan's own size, {size}."),
        },
    )


def _draw(request: GenerationRequest, cards: Sequence[Card], library: Library) -> None:
    try:
        found = _found(request, cards, library)
        st.markdown(smallest_sentence(request, cards, library))
    except NoProgram as error:
        st.info(f"There is no dry run to try sizes with: {sentence(str(error))}", icon=":material/info:")
        return
    _table(request, found)
    for reason in dict.fromkeys(one.reason for one in found if one.reason):
        st.caption(f"Unknown: {sentence(reason)}")
    limits = [what for one in found for what in (*one.sizes.values(), one.batch) if what and what.is_limit]
    beyond = " + marks the largest value that the planner accepts." if limits else ""
    st.caption(
        "Dry run, with every option of the plan. Each of these fits, and one step more does not: 8 pixels on the "
        "shorter side, or one image. The need does not grow smoothly with the size: a smaller size may not fit, and a "
        "much larger one may."
        f"{beyond}"
    )


def sizes_view(request: GenerationRequest, cards: Sequence[Card], library: Library | None) -> None:
    """Draw what fits on each GPU, and the smallest GPU for the plan."""
    if library is None or not cards:
        return
    st.header("Largest size and batch on each GPU", anchor=False)
    _draw(request, cards, library)
