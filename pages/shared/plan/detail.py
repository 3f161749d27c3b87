"""Draw the choice of the GPU that the tabs are about: one for the whole page."""

from collections.abc import Sequence

import streamlit as st

from pages.shared.frame.following import chosen_in, following_key
from pages.shared.plan.memory import card_to_look_at
from pages.shared.plan.verdicts import Answered

DETAIL_KEY, _PICKED = "detail", "detail-picked"
# More names than this do not fit one row of a laptop's screen.
_MOST_IN_A_ROW = 8


def _picked() -> None:
    st.session_state[_PICKED] = chosen_in(DETAIL_KEY)


def choose_gpu(shown: Sequence[Answered]) -> Answered:
    """Draw the choice of GPU and return its answers; the default is the first that does not fit, if any."""
    by_name = {one.answer.card.name: one for one in shown}
    if len(by_name) == 1:
        return shown[0]
    picked = st.session_state.get(_PICKED)
    names = list(by_name)
    first = picked if picked in by_name else card_to_look_at(one.dry_run for one in shown)
    key = following_key(DETAIL_KEY, first)
    label, text = "GPU in detail", "Changes, the map of batches, and memory over time below are for this GPU."
    if len(by_name) > _MOST_IN_A_ROW:
        name = st.selectbox(label, names, index=names.index(first), key=key, on_change=_picked, help=text)
    else:
        name = st.segmented_control(
            label, names, default=first, required=True, wrap=True, key=key, on_change=_picked, help=text
        )
    return by_name[name or shown[0].answer.card.name]
