"""Keep controls that follow a value which other controls change as well."""

from __future__ import annotations

from typing import Any

import streamlit as st


def _seen(name: str) -> tuple[int, Any] | None:
    return st.session_state.get(f"{name}-seen")


def following_key(name: str, value: Any) -> str:
    """Return the key of a control that shows this value: a new one after a change by others.

    A new key draws a new control at the new value. Writing the value into the state of the old one would lose what
    the user types elsewhere at that moment: the browser still sends the value from before, which Streamlit then takes
    for a choice of the user, and calls the control's callback.
    """
    seen = _seen(name)
    if seen is None or seen[1] != value:
        seen = (0 if seen is None else seen[0] + 1, value)
        st.session_state[f"{name}-seen"] = seen
    return f"{name}-{seen[0]}"


def chosen_in(name: str) -> Any:
    """Return what the user has chosen in this control, for its callback; the control keeps its key."""
    seen = _seen(name)
    assert seen is not None, "the control has not been drawn"
    value = st.session_state[f"{name}-{seen[0]}"]
    st.session_state[f"{name}-seen"] = (seen[0], value)
    return value
