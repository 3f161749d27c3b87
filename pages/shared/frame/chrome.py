"""Draw the frame of every page: title, navigation, and notices that belong on all pages."""

from pathlib import Path

import streamlit as st
from streamlit.delta_generator import DeltaGenerator

from pages.shared.frame import session
from pages.shared.frame.escape import code, sentence
from pages.shared.frame.plan_state import enter_page

_ICON = Path(__file__).with_name("icon.png")
_STYLE = Path(__file__).with_name("style.css")
_NAVIGATION = Path(__file__).with_name("navigation.js").read_text()
_PAGES = (
    ("streamlit_app.py", "Plan", ":material/straighten:"),
    ("pages/1_Verify.py", "Verify", ":material/play_circle:"),
    ("pages/2_History.py", "History", ":material/history:"),
    ("pages/3_Accuracy.py", "Accuracy", ":material/query_stats:"),
)


def open_page(name: str, subtitle: str) -> None:
    """Draw the top of a page, and bring the plan along; every page calls this first."""
    st.set_page_config(
        # A file of this repository, because an icon given by name would be fetched from a server of its maker.
        page_title=f"{name} · Will It Fit",
        page_icon=str(_ICON),
        layout="wide",
        menu_items={"About": None},
    )
    style()
    enter_page(name)
    with st.container(key="pages", horizontal=True, vertical_alignment="center", gap="small"):
        st.markdown("**Will It Fit**", width="content")
        for path, label, icon in _PAGES:
            st.page_link(path, label=label, icon=icon)
    st.title(name, anchor=False)
    st.caption(subtitle)
    with st.container(key="scripts"):
        st.html(f"<script>{_NAVIGATION}</script>", unsafe_allow_javascript=True)


def style() -> None:
    """Add what Streamlit's theme cannot set: a few colours and distances."""
    st.html(_STYLE)


def is_phone() -> bool:
    """Return whether the browser is a phone's, by its user agent."""
    return "Mobi" in st.context.headers.get("User-Agent", "")


def controls_and_results(label: str) -> tuple[DeltaGenerator, DeltaGenerator]:
    """Return the containers of a page's controls and results, side by side.

    On a phone the controls stand above the results, folded under the label, so that the answer is in sight.
    """
    # The user agent decides, not the width: a narrow window on a large screen keeps its controls in sight.
    if is_phone():
        was_refused = bool(st.session_state.get("refused"))
        return st.expander(label, expanded=was_refused), st.container()
    controls, results = st.columns([1, 2.2], gap="large")
    return controls, results


def history_notice(*, with_set_aside: bool = True) -> None:
    """Warn if the history cannot be used, or was damaged and set aside.

    The History page passes `with_set_aside=False`, because it shows damaged files in full.
    """
    store, problem = session.store()
    if problem:
        st.warning(
            f"{problem}. Plans work without the history, but no run is kept until this is repaired.",
            icon=":material/warning:",
        )
    elif with_set_aside and store and store.moved_aside in store.damaged_files():
        st.warning(
            f"The history was damaged. It was set aside as {code(store.moved_aside)}, and a new one was started. "
            "The **History** page can recover the runs that are still readable.",
            icon=":material/warning:",
        )


def programs_notice() -> None:
    """Warn while the memory programs do not match the installed versions.

    The page is run again once they do.
    """
    if session.library()[1] is not None:
        st.fragment(_programs_notice, run_every=session.LOOK_AGAIN_S)()


def _programs_notice() -> None:
    _, notice = session.library()
    if notice is None:
        # The whole page is run once more, with the new programs.
        st.rerun()
        return
    if session.is_compiling():
        follows = "They are being compiled in the background; this page updates itself when they are ready."
    else:
        follows = "Compiling them in the background has failed: the command says why."
    st.warning(f"{sentence(notice)} {follows}", icon=":material/build:")
