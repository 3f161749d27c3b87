"""A verdict is a word, a sign and a colour, the same everywhere; never the colour alone."""

from typing import Literal, NamedTuple

import streamlit as st

from planner.fit import Answer, Verdict
from planner.units import gib, signed_gib


class Look(NamedTuple):
    """How a verdict is shown."""

    icon: str
    color: Literal["green", "orange", "red", "gray"]


# Said in each card, above anything that may be scrolled past.
_CAUTION = {"formula": ", likely too low"}

LOOKS: dict[Verdict, Look] = {
    "fits": Look(":material/check_circle:", "green"),
    "tight": Look(":material/warning:", "orange"),
    "no": Look(":material/cancel:", "red"),
    "unknown": Look(":material/help:", "gray"),
}


def verdict_badge(verdict: Verdict) -> None:
    """The verdict's word, sign and colour."""
    look = LOOKS[verdict]
    st.badge(verdict, icon=look.icon, color=look.color)


def verdict_card(answer: Answer) -> None:
    """One card's verdict: need against usable, signed headroom, basis."""
    with st.container(border=True, height="stretch"):
        with st.container(horizontal=True, vertical_alignment="center", horizontal_alignment="distribute"):
            st.markdown(f"**{answer.card.name}**", width="content")
            verdict_badge(answer.verdict)
        if answer.need_bytes is None or answer.headroom_bytes is None:
            st.caption(answer.reason or "")
            return
        st.metric(
            "Headroom",
            signed_gib(answer.headroom_bytes),
            help="Usable memory minus need. Negative is by how much it misses.",
        )
        basis = f"{answer.basis}{_CAUTION.get(answer.basis, '')}"
        st.caption(f"needs {gib(answer.need_bytes)} of {gib(answer.card.usable_bytes)} usable  \nbasis: {basis}")
