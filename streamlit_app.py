"""The Plan page: which GPUs can run this request, and how much memory is left.

This file is also the app: ``streamlit run`` imports it, finds `app` below and serves the HTTP answers beside the pages.
For every visit it runs the same file as a script.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import streamlit as st

from pages.shared.controls.cards import card_controls
from pages.shared.controls.request import basis_control, published_control, request_controls
from pages.shared.frame import session
from pages.shared.frame.chrome import controls_and_results, history_notice, open_page, programs_notice
from pages.shared.frame.escape import sentence
from pages.shared.frame.plan_state import planned
from pages.shared.plan.formula import formula_view, not_counted
from pages.shared.plan.images import batch_list_view, images_notice
from pages.shared.plan.map import map_view
from pages.shared.plan.memory import need_parts
from pages.shared.plan.memory_chart import memory_chart
from pages.shared.plan.remedies import remedies_view
from pages.shared.plan.report import report_view
from pages.shared.plan.sizes import sizes_view
from pages.shared.plan.timeline import choose_card, timeline_view
from pages.shared.plan.verdicts import (
    Answered,
    assumptions_view,
    beside,
    card_notes_view,
    evidence_links,
    evidence_view,
    reasons_view,
    stack_view,
    verdict_card,
    verdict_words,
)
from pages.shared.server.app import ROUTES
from planner.cards.lookup import Card
from planner.plan import answer_plan
from planner.programs.library import Library
from planner.request import GenerationRequest


def verdicts(shown: list[Answered]) -> None:
    """Draw a box for each answer, three in a row where there is room."""
    for start in range(0, len(shown), 3):
        row = shown[start : start + 3]
        for column, one in zip(st.columns(3), row, strict=False):
            with column:
                verdict_card(one)
    evidence_links([one.answer.card for one in shown])


def explanation(request: GenerationRequest, cards: list[Card], shown: list[Answered], library: Library | None) -> None:
    """Draw what the verdicts rest on, what would change them, and what uses the memory."""
    answers = [one.answer for one in shown]
    reasons_view(answers)
    card_notes_view(answers)
    evidence_view(answers)
    assumptions_view(answers)
    stack_view(answers)
    if any(answer.basis == "formula" for answer in answers):
        not_counted(request)
    memory_chart([(answer, need_parts(answer, request, library)) for answer in answers])
    remedies_view(request, shown, library)
    sizes_view(request, cards, library)
    map_view(request, cards, library)
    one = choose_card(shown)
    timeline_view(request, one, library)
    formula_view(request, one, library)


def plan_page() -> None:
    """Draw the page: the controls of request, GPUs and basis, and the answers."""
    open_page("Plan", "Which GPUs can run this Stable Diffusion v1.5 request, and how much memory is left.")
    controls, results = controls_and_results("Request, GPUs and basis")
    with controls:
        request = request_controls()
        cards = card_controls()
        basis_control()
        published_control()
    with results:
        if request is None:
            st.info("Correct the request to see the answer here.", icon=":material/arrow_back:")
        elif not cards:
            st.info("Choose at least one GPU to see the answer here.", icon=":material/arrow_back:")
        else:
            programs_notice()
            library, _ = session.library()
            # Most requests take milliseconds, but many tiles of many images take long.
            plan = planned(request)
            with st.spinner("Replaying the request on each GPU"):
                evidence, notice = session.evidence(plan.published)
                # The listed images are answered where they are drawn, far below.
                found = answer_plan(replace(plan, images=""), cards, library=library, evidence=evidence)
                shown = [beside(answer, request, library) for answer in found.answers]
            st.caption(f"{request.describe()}.")
            # The list of images is drawn far below, but its verdict belongs above the others.
            above = st.container()
            verdicts(shown)
            meanings, rest, below = st.container(), st.container(), st.container()
            with below:
                listed = batch_list_view(request, cards, plan.basis, library, evidence)
                report_view(found._replace(plan=planned(request), images=listed), shown, library)
                history_notice()
            with above:
                images_notice(request, listed)
            with meanings:
                worst = [one.answer for one in listed.worst] if listed else []
                verdict_words({answer.verdict for answer in (*found.answers, *worst)})
            with rest:
                if notice:
                    st.warning(f"{sentence(notice)} The answers do not use it.", icon=":material/warning:")
                explanation(request, cards, shown, library)


if __name__ == "__main__":
    plan_page()
else:
    app = st.App(Path(__file__), routes=ROUTES)
