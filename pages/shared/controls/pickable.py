"""Draw tables of which a cell can be selected and put into the plan's controls, and so into the address."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import streamlit as st

from pages.shared.frame.plan_state import take


class Offer(NamedTuple):
    """Changes that a selected cell makes to the plan: values of controls by key, and the same in words."""

    changes: dict[str, Any]
    words: str


def load(offer: Offer) -> None:
    """Put an offer into the plan's controls and say so; for callbacks only."""
    take(offer.changes)
    st.toast(f"The plan is now: {offer.words}.", icon=":material/check:")


def table_key(name: str, labels: Sequence[str], columns: Sequence[str]) -> str:
    """Return a key for a table that changes with its rows and columns.

    Streamlit remembers a selection by its position, which means another cell in another table.
    """
    return f"{name}-{zlib.crc32(' '.join((*labels, *columns)).encode())}"


@st.fragment
def pickable_table(
    name: str,
    data: Any,
    labels: Sequence[str],
    columns: Sequence[str],
    offer: Callable[[int, str], Offer | None],
    alt: str,
    column_config: dict[str, Any],
) -> None:
    """Draw a table, and a button that puts the offer of the selected cell into the plan.

    `offer` is called with the row's place and the column's heading. Arrow keys select cells as clicks do, so a
    selection alone must not change the plan.
    """
    event = st.dataframe(
        data,
        hide_index=True,
        height="content",
        key=table_key(name, labels, columns),
        on_select="rerun",
        selection_mode="single-cell",
        alt=alt,
        column_config=column_config,
    )
    cells = event["selection"]["cells"]
    offered = offer(*cells[0]) if cells else None
    taken = st.button(
        f"Plan {offered.words}" if offered else "Select a cell to plan it",
        key=f"{name}-take",
        icon=":material/arrow_upward:",
        disabled=offered is None,
        on_click=load,
        args=(offered,),
        help="Sets the controls of the plan.",
    )
    if taken:
        st.rerun()
