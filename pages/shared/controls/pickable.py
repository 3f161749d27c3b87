"""Tables of which a cell can be picked, and put into the plan's controls; being bound, they change the address."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import streamlit as st

from pages.shared.frame.plan_state import take


class Offer(NamedTuple):
    """What a picked cell would put into the plan: values of its controls by key, and the same in words."""

    changes: dict[str, Any]
    words: str


def load(offer: Offer) -> None:
    """Put an offer into the plan's controls, as if it had been entered, and say so; called in a callback."""
    take(offer.changes)
    st.toast(f"In the plan now: {offer.words}.", icon=":material/check:")


def table_key(name: str, labels: Sequence[str], columns: Sequence[str]) -> str:
    """The key of a table: cells are known by their places, so one with other rows or columns is another table."""
    return f"{name}-{zlib.crc32(' '.join((*labels, *columns)).encode())}"


@st.fragment
def pickable_table(
    name: str,
    data: Any,
    labels: Sequence[str],
    columns: Sequence[str],
    offer: Callable[[int, str], Offer | None],
    told: str,
    column_config: dict[str, Any],
) -> None:
    """Draw a table and, once a cell is picked in it, the button that takes what is offered for its row and column.

    Arrow keys pick as a click does, so picking alone changes nothing.
    """
    event = st.dataframe(
        data,
        hide_index=True,
        height="content",
        key=table_key(name, labels, columns),
        on_select="rerun",
        selection_mode="single-cell",
        alt=told,
        column_config=column_config,
    )
    cells = event["selection"]["cells"]
    offered = offer(*cells[0]) if cells else None
    taken = st.button(
        f"Plan {offered.words}" if offered else "Pick a cell to plan it",
        key=f"{name}-take",
        icon=":material/arrow_upward:",
        disabled=offered is None,
        on_click=load,
        args=(offered,),
        help="Changes the controls of the plan.",
    )
    if taken:
        st.rerun()
