"""Draw notices of damaged histories, until their runs are recovered or the user leaves them."""

from __future__ import annotations

from pathlib import Path

import streamlit as st

from cache.history.recovery import put_away, recover, salvage
from pages.shared.frame import session
from pages.shared.frame.escape import code, plain, sentence
from pages.shared.guard.rights import Refusal, demand, may_act
from planner.errors import PlannerError

_RESULT = "recovered"


def _runs(count: int) -> str:
    return f"{count:,} run{'' if count == 1 else 's'}"


def _recover(path: Path) -> None:
    try:
        demand()
        store, problem = session.store()
        if store is None:
            raise PlannerError(f"the history cannot be used: {problem}")
        done = recover(store, path, salvage(path))
    except PlannerError as error:
        st.session_state[_RESULT] = (False, f"{sentence(str(error))} Nothing was recovered.")
        return
    text = f"Recovered {_runs(done.saved)}; {done.known:,} {'was' if done.known == 1 else 'were'} already known, "
    text += f"{done.lost:,} could not be read completely."
    kept = f"The file cannot be renamed ({done.stays})." if done.stays else f"The file is kept as {code(done.path)}."
    st.session_state[_RESULT] = (True, f"{text} {kept}")


def _leave(path: Path) -> None:
    store, _ = session.store()
    if store is None:
        return
    if isinstance(found := may_act(), Refusal):
        st.session_state[_RESULT] = (False, plain(found.sentence))
        return
    name, stays = put_away(store, path)
    kept = f"{code(path)} cannot be renamed ({stays})." if stays else f"The file is kept as {code(name)}."
    st.session_state[_RESULT] = (not stays, kept)


def set_aside_notice() -> None:
    """Draw a notice of each damaged history with its buttons, and the result of the last click."""
    store, _ = session.store()
    for number, path in enumerate(store.damaged_files() if store else ()):
        with st.container(border=True):
            st.warning(
                f"A damaged history was set aside as {code(path)}. **Recover** copies every run that can be read "
                "completely; the file itself is kept.",
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
                    help="Recover nothing, and do not mention the file again. It is renamed, not deleted.",
                )
    # A result is shown once, until the next run of the page.
    good, text = st.session_state.pop(_RESULT, (True, ""))
    if text and good:
        st.success(text, icon=":material/check_circle:")
    elif text:
        st.error(text, icon=":material/error:")
