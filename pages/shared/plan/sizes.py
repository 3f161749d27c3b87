"""What fits on each card: the largest size of each shape and the largest batch, ready to be taken into the plan."""

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

_OPEN = "sizes-open"
_BATCH = "Batch"
# Work that takes less is over before anybody has read of it.
SHOWN_AFTER_S = 0.5


def progress(text: str) -> tuple[Callable[[float], None], Callable[[], None]]:
    """A bar that appears once work has taken a while: what to call with how much is done, 0 to 1, and at the end."""
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
    """A cell of the table."""
    if what is None or not (isinstance(what, Size) or what.images):
        return "none"
    text = str(what) if isinstance(what, Size) else f"{what.images}"
    return f"{text}+" if what.is_limit else text


def smallest_sentence(request: GenerationRequest, cards: Sequence[Card], library: Library) -> str:
    """The smallest of the cards for this request, and of the catalogue's where that is a smaller one."""
    asked = f"{request.effective_width}×{request.effective_height}, batch {request.batch}"
    useful = [card for card in CATALOGUE if card.runs_pinned_torch]
    chosen, known = smallest_card(request, cards, library), smallest_card(request, useful, library)
    text = f"No card of these fits the plan, {asked}."
    if chosen:
        text = f"The smallest of these for the plan, {asked}: **{plain(chosen.name)}**, {gib(chosen.usable_bytes)}."
    if known is None:
        return f"{text} None of the catalogue does." if not chosen else text
    if chosen is None or known.usable_bytes < chosen.usable_bytes:
        return f"{text} The smallest of the catalogue: **{plain(known.name)}**, {gib(known.usable_bytes)}."
    return text


def offer_of(one: CardSizes, column: str) -> Offer | None:
    """The size or batch in this column of a card's row; None where it has none."""
    if column == _BATCH:
        return Offer({"batch": one.batch.images}, f"batch {one.batch.images}") if one.batch.images else None
    size = one.sizes.get(column.lower())
    return Offer({"width": size.width, "height": size.height}, str(size)) if size else None


def _table(request: GenerationRequest, found: Sequence[CardSizes]) -> None:
    names = {name: name.capitalize() for name in RATIOS}
    rows = [
        {"Card": one.card.name}
        | {shown: _words(one.sizes[name]) for name, shown in names.items()}
        | {_BATCH: _words(one.batch)}
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
        "The largest sizes and the largest batch that fit each card",
        {
            "Card": text("Card", width=104, pinned=True, help="By what it has usable, less its CUDA context."),
            **config,
            _BATCH: text(_BATCH, width=64, help=f"The largest batch that fits at the plan's own size, {size}."),
        },
    )


def _draw(request: GenerationRequest, cards: Sequence[Card], library: Library) -> None:
    try:
        found = _found(request, cards, library)
        st.markdown(smallest_sentence(request, cards, library))
    except NoProgram as error:
        st.info(f"There is no dry run to look with: {sentence(str(error))}", icon=":material/info:")
        return
    _table(request, found)
    limits = [what for one in found for what in (*one.sizes.values(), one.batch) if what and what.is_limit]
    beyond = " + is the largest that the planner takes; nothing larger was tried." if limits else ""
    st.caption(
        "Dry run. Each of these fits, with every option of the plan, and one step more does not: 8 pixels of the "
        "shorter side, or one image. Needs jump from size to size: a smaller one may not fit, and one far beyond may."
        f"{beyond}"
    )


def sizes_view(request: GenerationRequest, cards: Sequence[Card], library: Library | None) -> None:
    """What fits on each card, and the smallest card; worked out once it is opened."""
    if library is None or not cards:
        return
    title = "The largest size and batch on each card"
    box = st.expander(title, key=_OPEN, on_change="rerun", icon=":material/aspect_ratio:")
    if box.open:
        with box:
            _draw(request, cards, library)
