"""Plan: which GPUs run this request, by how much, and how we know.

This file is the app as well: ``streamlit run`` finds `app` below, imports this file for it, and serves the HTTP answers
beside the pages. For every visit it runs the same file as a script.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import streamlit as st

from cache.machine.attached import plannable
from pages.shared.controls.cards import card_controls
from pages.shared.controls.request import basis_control, published_control, request_controls
from pages.shared.frame import session
from pages.shared.frame.chrome import controls_and_results, history_notice, open_page, programs_notice, style
from pages.shared.frame.escape import plain, sentence
from pages.shared.frame.plan_state import (
    ADVANCED_KEYS,
    EXPORT,
    FIT,
    IMAGES,
    SIZES,
    TAB_KEY,
    TABS,
    WHY,
    linked,
    planned,
    stays_open,
)
from pages.shared.guard.turns import TURNS
from pages.shared.plan.detail import choose_gpu
from pages.shared.plan.formula import formula_view, not_counted
from pages.shared.plan.images import answer_list, images_notice, images_view, listed_rows
from pages.shared.plan.map import map_view
from pages.shared.plan.memory import need_parts
from pages.shared.plan.memory_chart import memory_chart
from pages.shared.plan.remedies import applied_view, remedies_view
from pages.shared.plan.report import report_view
from pages.shared.plan.share import example_view, link_of, share_view
from pages.shared.plan.sizes import sizes_view
from pages.shared.plan.timeline import after_view, timeline_view
from pages.shared.plan.verdicts import (
    Answered,
    answer_view,
    assumptions_view,
    beside,
    card_notes_view,
    evidence_links,
    evidence_view,
    reasons_view,
    stack_view,
    verdict_boxes,
    verdict_words,
)
from pages.shared.server.app import MIDDLEWARE, ROUTES, lifespan
from planner.cards.lookup import Card
from planner.errors import PlannerError
from planner.plan import answer_plan
from planner.programs.library import Library
from planner.request import GenerationRequest


def why_view(request: GenerationRequest, shown: Sequence[Answered], one: Answered, library: Library | None) -> None:
    """Draw what the verdicts rest on, where memory goes over time, and the formula beside the dry run."""
    answers = [one.answer for one in shown]
    evidence_view(answers)
    assumptions_view(answers)
    stack_view(answers)
    evidence_links([answer.card for answer in answers])
    timeline_view(request, one, library)
    after_view(answers)
    formula_view(request, one, library)


def results_view(request: GenerationRequest, cards: Sequence[Card]) -> None:
    """Draw the answer, the GPUs and one picture, and the rest in tabs.

    Only the open tab is worked out.
    """
    programs_notice()
    library, _ = session.library()
    plan = planned(request)
    # Most requests take milliseconds; many tiles of many images take long.
    with st.spinner("Replaying the request on each GPU"):
        evidence, notice = session.evidence(plan.published)
        # The listed images are answered with their table.
        found = answer_plan(replace(plan, images=""), cards, library=library, evidence=evidence)
        shown = [beside(answer, request, library) for answer in found.answers]
    answers = found.answers
    answer_view(request, answers)
    # Filled at the end, when the table of images has had its say about the plan.
    sharing = st.container(horizontal=True, vertical_alignment="center")
    # The list of images stands in a tab below, and its effect on the verdicts belongs above them.
    above = st.container()
    verdict_boxes(shown)
    meanings = st.container()
    if notice:
        st.warning(f"{sentence(notice)} These answers stand without it.", icon=":material/warning:")
    reasons_view(answers)
    card_notes_view(answers)
    if any(answer.basis == "formula" for answer in answers):
        not_counted(request)
    memory_chart([(answer, need_parts(answer, request, library)) for answer in answers])
    one = choose_gpu(shown)
    tabs = dict(zip(TABS, st.tabs(TABS, key=TAB_KEY, bind="query-params"), strict=True))
    with tabs[IMAGES]:
        rows = images_view(request) if tabs[IMAGES].open else listed_rows(request)
        listed = answer_list(rows, request, cards, plan.basis, library, evidence, is_drawn=bool(tabs[IMAGES].open))
    with above:
        images_notice(request, listed)
    with meanings:
        worst = [decides.answer for decides in listed.worst] if listed else []
        verdict_words({answer.verdict for answer in (*answers, *worst)})
    if tabs[FIT].open:
        with tabs[FIT]:
            remedies_view(request, one, library)
    if tabs[SIZES].open:
        with tabs[SIZES]:
            sizes_view(request, cards, library)
            map_view(request, cards, one, library)
    if tabs[WHY].open:
        with tabs[WHY]:
            why_view(request, shown, one, library)
    whole = found._replace(plan=planned(request), images=listed)
    with sharing:
        share_view(whole.plan)
        example_view(whole.plan)
        applied_view(whole.plan)
    if tabs[EXPORT].open:
        with tabs[EXPORT]:
            report_view(whole, shown, library)
    history_notice()


def embedded_page() -> None:
    """Draw the answer of the address alone, for a wiki or a dashboard (`?embed=true`)."""
    st.set_page_config(page_title="Will It Fit", layout="wide")
    style()
    plan, problems = linked()
    for problem in problems:
        st.warning(f"{plain(problem)}.", icon=":material/link_off:")
    library, _ = session.library()
    evidence, notice = session.evidence(plan.published)
    try:
        found = answer_plan(plan, plan.cards(plannable), library=library, evidence=evidence)
    except PlannerError as error:
        st.error(sentence(str(error)), icon=":material/error:")
        return
    if notice:
        st.warning(f"{sentence(notice)} These answers stand without it.", icon=":material/warning:")
    answer_view(plan.request, found.answers)
    images_notice(plan.request, found.images)
    verdict_boxes([beside(answer, plan.request, library) for answer in found.answers])
    memory_chart([(answer, need_parts(answer, plan.request, library)) for answer in found.answers])
    st.link_button("Open this plan", link_of(plan), icon=":material/open_in_new:")


def plan_page() -> None:
    """Draw the page: the request and the GPUs, and what they come to."""
    if st.context.is_embedded:
        embedded_page()
        return
    open_page("Plan", "Which GPUs can run a Stable Diffusion v1.5 request, and how much memory is left.")
    controls, results = controls_and_results("Request and GPUs")
    with controls:
        place, gpus = st.container(), st.container()
        advanced = st.expander("Advanced", expanded=stays_open("advanced", ADVANCED_KEYS))
        with place:
            request = request_controls(advanced)
        with gpus:
            cards = card_controls()
        with advanced:
            basis_control()
            published_control()
    with results:
        if request is None:
            st.info("Correct the request and the answer appears here.", icon=":material/arrow_back:")
        elif not cards:
            st.info("Choose at least one GPU and the answer appears here.", icon=":material/arrow_back:")
        else:
            results_view(request, cards)


if __name__ == "__main__":
    with TURNS.taken():
        plan_page()
else:
    app = st.App(Path(__file__), routes=ROUTES, middleware=MIDDLEWARE, lifespan=lifespan)
