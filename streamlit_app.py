"""Plan: which cards run this request, by how much, and how we know."""

import streamlit as st

from pages.shared.charts import memory_chart
from pages.shared.chrome import history_notice, open_page
from pages.shared.formula_view import formula_view, not_counted
from pages.shared.inputs import card_controls, request_controls
from pages.shared.verdicts import verdict_card
from planner.fit import Answer, fit
from planner.formula import estimate

open_page("Plan", "Which cards run this Stable Diffusion v1.5 request, by how much, and how we know.")


def verdicts(answers: list[Answer]) -> None:
    """A card for each answer, three in a row where there is room."""
    for start in range(0, len(answers), 3):
        row = answers[start : start + 3]
        for column, answer in zip(st.columns(3), row, strict=False):
            with column:
                verdict_card(answer)


controls, results = st.columns([1, 2.2], gap="large")
with controls:
    request = request_controls()
    cards = card_controls()
with results:
    if request is None:
        st.info("Correct the request and the answer appears here.", icon=":material/arrow_back:")
    elif not cards:
        st.info("Choose at least one card and the answer appears here.", icon=":material/arrow_back:")
    else:
        breakdown = estimate(request)
        answers = [fit(request, card) for card in cards]
        verdicts(answers)
        st.caption(
            f"{request.describe()}. Each mark below is what a card has usable; it is red where the need goes beyond."
        )
        memory_chart(answers, breakdown)
        not_counted(request)
        formula_view(breakdown)
        history_notice()
