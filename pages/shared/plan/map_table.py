"""Draw a map of verdicts as a table of coloured cells.

It scrolls on a phone, and arrow keys go through it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pandas
import streamlit as st

from pages.shared.controls.pickable import Offer, pickable_table
from planner.alternatives.size_map import Cell
from planner.answer import SIGNS, Verdict
from planner.units import GIB

# White text has a contrast of at least 5:1 on each, on light and dark pages.
_FILLS: dict[Verdict, str] = {"fits": "#1b7a4b", "tight": "#955800", "no": "#b3261e"}


def cell_text(cell: Cell) -> str:
    """Return sign and headroom in GiB: `✓ +3.1`, or `✕ ≤ −9.4` if it is a bound."""
    # A small shortfall that rounds to zero keeps its sign.
    size = cell.headroom_bytes / GIB
    shown = f"{'−' if cell.headroom_bytes < 0 else '+'}{abs(size):.1f}"
    return f"{SIGNS[cell.verdict]} {'≤ ' if cell.is_bound else ''}{shown}"


def map_table(
    name: str,
    first: str,
    first_help: str,
    labels: Sequence[str],
    rows: Sequence[Sequence[Cell]],
    offer: Callable[[Cell], Offer],
    alt: str,
) -> None:
    """Draw a row for each label and a column for each size; offer the selected cell."""
    sizes = [f"{cell.request.width}×{cell.request.height}" for cell in rows[0]]
    frame = pandas.DataFrame(
        [[label, *map(cell_text, row)] for label, row in zip(labels, rows, strict=True)], columns=[first, *sizes]
    )
    fills = pandas.DataFrame(
        [["", *(f"background-color: {_FILLS[cell.verdict]}; color: #ffffff" for cell in row)] for row in rows],
        columns=frame.columns,
    )

    def offered(row: int, column: str) -> Offer | None:
        return offer(rows[row][sizes.index(column)]) if column in sizes else None

    text = st.column_config.TextColumn
    config = {
        first: text(first, width=104, pinned=True, help=first_help),
        **{size: text(size, width=86, help=f"Headroom at {size}, GiB") for size in sizes},
    }
    pickable_table(name, frame.style.apply(lambda _: fills, axis=None), labels, sizes, offered, alt, config)
