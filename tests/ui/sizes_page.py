"""Draw the largest sizes and the map on a page of their own, which Streamlit runs."""

import streamlit as st

from pages.shared.controls.cards import card_controls
from pages.shared.controls.request import request_controls
from pages.shared.frame import session
from pages.shared.frame.plan_state import enter_page
from pages.shared.plan.detail import choose_gpu
from pages.shared.plan.map import map_view
from pages.shared.plan.sizes import sizes_view
from pages.shared.plan.verdicts import beside
from planner.fit import fit

st.set_page_config(layout="wide")
enter_page("Plan")
controls, results = st.columns([1, 2.2], gap="large")
with controls:
    request, cards = request_controls(), card_controls()
with results:
    if request is not None:
        library, _ = session.library()
        answers = [fit(request, card, "dry-run", library=library) for card in cards]
        one = choose_gpu([beside(answer, request, library) for answer in answers])
        sizes_view(request, cards, library)
        map_view(request, cards, one, library)
