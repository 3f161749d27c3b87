"""Draw the map of sizes against GPUs, or of sizes against batches on one GPU.

A selected cell can be put into the plan.
"""

from __future__ import annotations

from collections.abc import Sequence

import streamlit as st

from pages.shared.controls.pickable import Offer
from pages.shared.frame.escape import sentence
from pages.shared.frame.plan_state import (
    BY_GPU,
    CARDS_KEY,
    DEFAULT_CARD_NAMES,
    MAP_ALL_KEY,
    MAP_KEY,
    MAP_SHAPE_KEY,
    MAPS,
    plan,
)
from pages.shared.plan.map_table import map_table
from pages.shared.plan.sizes import progress
from pages.shared.plan.verdicts import Answered
from planner.alternatives.size_map import BATCHES, FEW_SIDES, Cell, by_batch, by_card, columns, left_out
from planner.cards.lookup import CATALOGUE, SLICES, Card
from planner.errors import NoProgram
from planner.programs.library import Library
from planner.report.text import card_notes
from planner.request import GenerationRequest

_OPEN = "map-open"
SQUARE, AS_ASKED = "square", "as asked"
ALL_CARDS = (*CATALOGUE, *SLICES)


def _kind() -> str:
    kind = st.segmented_control(
        "Map",
        MAPS,
        default=BY_GPU,
        required=True,
        key=MAP_KEY,
        bind="query-params",
        help="size by GPU: the plan's batch at many sizes, a row for each GPU. size by batch: many batches on the GPU "
        "in detail.",
    )
    return kind or BY_GPU


def _is_square(request: GenerationRequest) -> bool:
    """Return whether the map's sizes are square; the user chooses if the plan is not square."""
    if request.effective_width == request.effective_height:
        return True
    shape = st.segmented_control(
        "Shape",
        (SQUARE, AS_ASKED),
        default=SQUARE,
        required=True,
        key=MAP_SHAPE_KEY,
        bind="query-params",
        help="as asked: larger and smaller sizes in the proportions of the plan.",
    )
    return shape != AS_ASKED


def offer_of(cell: Cell, **more: int) -> Offer:
    """Return an offer of the cell's size with `more` settings.

    It also chooses the cell's GPU if that is of the catalogue and not chosen yet.
    """
    request, chosen = cell.request, plan().get(CARDS_KEY, DEFAULT_CARD_NAMES)
    changes = {"width": request.width, "height": request.height, **more}
    words = ", ".join([_size(cell), *(f"{name} {value}" for name, value in more.items())])
    if cell.card.name in chosen or cell.card not in ALL_CARDS:
        return Offer(changes, words)
    return Offer(changes | {CARDS_KEY: [*chosen, cell.card.name]}, f"{words} on {cell.card.name}")


def _offer_batch(cell: Cell) -> Offer:
    return offer_of(cell, batch=cell.request.batch)


def _words(rows: Sequence[Sequence[Cell]], labels: Sequence[str]) -> str:
    """Describe the map in words, for people who cannot see it."""
    texts = []
    for label, row in zip(labels, rows, strict=True):
        fitting = [cell.request for cell in row if cell.verdict == "fits"]
        most = f"fits up to {fitting[-1].width}×{fitting[-1].height}" if fitting else "fits none of these sizes"
        texts.append(f"{label}: {most}")
    return f"A table of verdicts and headroom, a column for each size. {'; '.join(texts)}"


def _legend(rows: Sequence[Sequence[Cell]]) -> str:
    """Return what the signs and numbers in these rows mean."""
    text = "✓ fits, ▲ is tight, ✕ does not run. Numbers are the headroom in GiB; if negative, that much is missing."
    if any(cell.verdict == "tight" and cell.headroom_bytes >= 0 for row in rows for cell in row):
        text += " ▲ with + fits, but not at the upper end of its need."
    return text


def _beyond(rows: Sequence[Sequence[Cell]], first: int, last: int) -> str:
    """Return sentences on the `first` and the `last` columns, which are left out."""
    text = ""
    if first:
        text += (
            f" Sizes from {_size(rows[0][0])} to {_size(rows[0][first - 1])} fit all of these GPUs and are left out."
        )
    if last:
        text += f" Sizes from {_size(rows[0][-last])} to {_size(rows[0][-1])} run on none of them and are left out."
    return text


def _size(cell: Cell) -> str:
    return f"{cell.request.width}×{cell.request.height}"


def _by_card(request: GenerationRequest, cards: Sequence[Card], library: Library) -> None:
    is_square = _is_square(request)
    if st.toggle(
        "Whole catalogue",
        key=MAP_ALL_KEY,
        bind="query-params",
        help="A row for each GPU and MIG slice that the planner knows, beside those of the plan.",
    ):
        cards = [*cards, *(card for card in ALL_CARDS if card not in cards)]
    report, end = progress("Replaying each size on each GPU model")
    requests = columns(request, is_square=is_square)
    rows = by_card(requests, cards, library, report)
    end()
    names = [card.name for card in cards]
    first, last = left_out(rows)
    shown = [row[first : len(row) - last] for row in rows]
    help_text = "Judged by its usable memory, less its CUDA context."
    map_table("map-cards", "GPU", help_text, names, shown, offer_of, _words(rows, names))
    st.caption(
        f"{len(requests) * len(cards):,} dry runs at batch {request.batch}. "
        f"{_legend(shown)}{_beyond(rows, first, last)}"
    )
    for note in card_notes(cards):
        st.caption(f"{note}.")


def _by_batch(request: GenerationRequest, card: Card, library: Library) -> None:
    requests = columns(request, FEW_SIDES, is_square=_is_square(request))
    batches = sorted(batch for batch in {*BATCHES, request.batch} if batch <= request.most_batch)
    report, end = progress("Replaying each batch at each size")
    rows = by_batch(requests, batches, card, library, report)
    end()
    labels = [f"{batch}" for batch in batches]
    map_table(
        "map-batches",
        "Batch",
        "Requests served together.",
        labels,
        rows,
        _offer_batch,
        _words(rows, [f"batch {label}" for label in labels]),
    )
    st.caption(
        f"Dry runs on {card.name}. {_legend(rows)} ≤ marks cells whose tensors alone exceed the GPU: they are certain "
        "not to run, and the headroom is this or less."
    )


def map_view(request: GenerationRequest, cards: Sequence[Card], one: Answered, library: Library | None) -> None:
    """Draw a map of verdicts and headroom around the plan, once it is opened.

    The map of batches is of one GPU.
    """
    if library is None or not cards:
        return
    box = st.expander("Map of sizes, GPUs and batches", key=_OPEN, on_change="rerun")
    if not box.open:
        return
    with box:
        kind = _kind()
        try:
            if kind == BY_GPU:
                _by_card(request, cards, library)
            else:
                _by_batch(request, one.answer.card, library)
        except NoProgram as error:
            st.info(f"There is no dry run to draw: {sentence(str(error))}", icon=":material/info:")
