"""Damaged histories that were set aside: named until their runs are saved, or somebody decides to leave them."""

from __future__ import annotations

from pathlib import Path

import streamlit as st

from cache.history.recovery import put_away, recover, salvage
from pages.shared.frame import session
from pages.shared.frame.escape import code, sentence
from planner.errors import PlannerError

_TOLD = "recovered"


def _runs(count: int) -> str:
    return f"{count:,} run{'' if count == 1 else 's'}"


def _recover(path: Path) -> None:
    try:
        store, problem = session.store()
        if store is None:
            raise PlannerError(f"nothing can be kept: {problem}")
        done = recover(store, path, salvage(path))
    except PlannerError as error:
        st.session_state[_TOLD] = (False, f"{sentence(str(error))} Nothing was saved.")
        return
    told = f"Saved {_runs(done.saved)}; {done.known:,} {'was' if done.known == 1 else 'were'} known, "
    told += f"{done.lost:,} could not be read whole."
    kept = f"The file cannot be renamed ({done.stays})." if done.stays else f"The file is kept as {code(done.path)}."
    st.session_state[_TOLD] = (True, f"{told} {kept}")


def _leave(path: Path) -> None:
    store, _ = session.store()
    if store is None:
        return
    name, stays = put_away(store, path)
    kept = f"{code(path)} cannot be renamed ({stays})." if stays else f"Left as it is, as {code(name)}."
    st.session_state[_TOLD] = (not stays, kept)


def set_aside_notice() -> None:
    """Name each history that was set aside, with what can be done, and what came of it."""
    store, _ = session.store()
    for number, path in enumerate(store.damaged_files() if store else ()):
        with st.container(border=True):
            st.warning(
                f"A damaged history was set aside as {code(path)}. **Recover** saves every run that can be read "
                "whole; the file itself is kept.",
                icon=":material/warning:",
            )
            with st.container(horizontal=True):
                st.button(
                    "Recover",
                    type="primary",
                    icon=":material/healing:",
                    key=f"recover-{number}",
                    on_click=_recover,
                    args=(path,),
                )
                st.button(
                    "Leave it",
                    key=f"leave-{number}",
                    on_click=_leave,
                    args=(path,),
                    help="Save nothing, and mention the file no more. It is renamed, not deleted.",
                )
    # Said once: the next thing that is done on the page takes its place.
    good, told = st.session_state.pop(_TOLD, (True, ""))
    if told and good:
        st.success(told, icon=":material/check_circle:")
    elif told:
        st.error(told, icon=":material/error:")
