"""The frame around every page: its title, the navigation, and what the user must know wherever they are."""

from pathlib import Path

import streamlit as st
from streamlit.delta_generator import DeltaGenerator

from pages.shared.frame import session
from pages.shared.frame.escape import code, sentence
from pages.shared.frame.plan_state import enter_page

_ICON = Path(__file__).with_name("icon.png")
_PAGES = (
    ("streamlit_app.py", "Plan", ":material/straighten:"),
    ("pages/1_Verify.py", "Verify", ":material/play_circle:"),
    ("pages/2_History.py", "History", ":material/history:"),
    ("pages/3_Accuracy.py", "Accuracy", ":material/query_stats:"),
)


def open_page(name: str, subtitle: str) -> None:
    """Draw the top of a page. Every page calls this first, so that one opened by its link alone is complete."""
    st.set_page_config(
        # A file of ours: an icon by name would be fetched from its maker's servers.
        page_title=f"{name} · Will It Fit",
        page_icon=str(_ICON),
        layout="wide",
        menu_items={"About": None},
    )
    enter_page(name)
    with st.container(horizontal=True, vertical_alignment="center", gap="small"):
        st.markdown("**Will It Fit**", width="content")
        for path, label, icon in _PAGES:
            st.page_link(path, label=label, icon=icon, disabled=label == name)
    st.title(name, anchor=False)
    st.caption(subtitle)


def is_phone() -> bool:
    """Whether the page is seen on a phone, as browsers ask to be told apart."""
    return "Mobi" in st.context.headers.get("User-Agent", "")


def controls_and_results(label: str) -> tuple[DeltaGenerator, DeltaGenerator]:
    """Where a page's controls and its results go: side by side, or one above the other on a phone.

    There the controls are folded away under the label, so that whoever opens a link sees what it answers.
    """
    # A narrow window of a large screen keeps its controls in sight.
    if is_phone():
        was_refused = bool(st.session_state.get("refused"))
        return st.expander(label, expanded=was_refused, icon=":material/tune:"), st.container()
    controls, results = st.columns([1, 2.2], gap="large")
    return controls, results


def history_notice(*, with_set_aside: bool = True) -> None:
    """Say so when the history cannot be used, or was damaged and set aside; History shows the second by itself."""
    store, problem = session.store()
    if problem:
        st.warning(f"{problem}. Plans work without it; nothing is kept until then.", icon=":material/warning:")
    elif with_set_aside and store and store.moved_aside in store.damaged_files():
        st.warning(
            f"The history was damaged and was set aside as {code(store.moved_aside)}; a new one was started. "
            "**History** saves the runs that can be read.",
            icon=":material/warning:",
        )


def programs_notice() -> None:
    """Say so while the memory programs are not those of the installed versions, and go on once they are."""
    if session.library()[1] is not None:
        st.fragment(_programs_notice, run_every=session.LOOK_AGAIN_S)()


def _programs_notice() -> None:
    _, notice = session.library()
    if notice is None:
        # The whole page, once: it answers by the new programs.
        st.rerun()
        return
    if session.is_compiling():
        follows = "They are being compiled in the background; this page takes them up by itself."
    else:
        follows = "Nothing has come of compiling them in the background: the command says why."
    st.warning(f"{sentence(notice)} {follows}", icon=":material/build:")
