"""What is picked in a table goes into the plan's controls; being bound, they change the address."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import streamlit as st

from pages.shared.plan_state import plan


def load(changes: dict[str, Any], words: str) -> None:
    """Put these values into the plan's controls, as if they had been entered, and say so; called in a callback."""
    for key, value in changes.items():
        st.session_state[key] = plan()[key] = value
    st.toast(f"In the plan now: {words}.", icon=":material/check:")


def table_key(name: str) -> str:
    """The key of the table of this name: another one after each pick, so that nothing is picked in it."""
    return f"{name}-{st.session_state.get(f'{name}-picks', 0)}"


def pick_cell(name: str, take: Callable[[int, str], None]) -> None:
    """Take the cell that was picked in the table of this name, by its row and column; called in a callback."""
    cells = st.session_state[table_key(name)]["selection"]["cells"]
    st.session_state[f"{name}-picks"] = st.session_state.get(f"{name}-picks", 0) + 1
    if cells:
        take(*cells[0])
