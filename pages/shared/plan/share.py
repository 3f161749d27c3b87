"""Draw the plan's link, to copy and send."""

from urllib.parse import urlencode, urljoin, urlsplit

import streamlit as st

from pages.shared.frame.plan_state import take
from planner.plan import DEFAULT_GPUS, Plan

# A size that fits some of the default GPUs and not all of them.
EXAMPLE = (2048, 2048)
# Addresses that no other machine reaches.
_LOCAL = ("127.0.0.1", "localhost", "::1")


def link_of(plan: Plan) -> str:
    """Return the address that opens this plan in this app, as its visitor reaches it."""
    here = st.context.url or "http://127.0.0.1:8501/"
    return f"{urljoin(here, './')}?{urlencode(plan.to_query())}"


def share_view(plan: Plan) -> None:
    """Draw a button that opens the plan's link, to copy, and say where it does not lead anywhere."""
    link = link_of(plan)
    with st.popover("Share", icon=":material/share:", key="share"):
        st.markdown("**Link to this plan**. The icon at its right end copies it.")
        st.code(link, language=None, wrap_lines=True)
        if urlsplit(link).hostname in _LOCAL:
            st.caption(
                "This address works on this machine only. A colleague who runs the app opens the same plan with the "
                "part after the question mark; `docs/deploy.md` says how to serve the app to others. Files to send are "
                "under **Export**."
            )


def example_view(plan: Plan) -> None:
    """Offer a worked example to a visitor who has not changed anything yet."""
    if plan != Plan(gpus=DEFAULT_GPUS):
        return
    width, height = EXAMPLE
    st.button(
        f"Try an example: {width}×{height}",
        icon=":material/lightbulb:",
        key="example",
        on_click=take,
        args=({"width": width, "height": height},),
        help="A size that one of these GPUs runs only slowly; the tab Make it fit says what would help.",
    )
