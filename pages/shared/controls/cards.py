"""The controls that choose GPUs: from the catalogue, of this machine, by description, and shared by workers."""

import streamlit as st

from cache.machine.attached import cards_to_plan_on
from pages.shared.controls.request import field_control
from pages.shared.frame import session
from pages.shared.frame.escape import sentence
from pages.shared.frame.plan_state import (
    ATTACHED_KEY,
    CAPABILITY_KEY,
    CARDS_KEY,
    DEFAULT_CARD_NAMES,
    MEMORY_KEY,
    WORKERS_KEY,
    plan,
    planned,
    stays_open,
)
from planner.cards.lookup import CATALOGUE, SLICES, Card, described_card
from planner.errors import InvalidArgument
from planner.plan import plan_field
from planner.request import DEFAULT


def _chosen() -> None:
    plan()[CARDS_KEY] = st.multiselect(
        "GPUs",
        [card.name for card in (*CATALOGUE, *SLICES)],
        default=DEFAULT_CARD_NAMES,
        key=CARDS_KEY,
        bind="query-params",
        placeholder="Choose GPUs",
        help="Type to search; MIG slices are listed too (3g finds three). `python -m planner gpus --json` lists the "
        "source of each number. Numbers of slices are estimates.",
    )


def _described() -> None:
    """Draw the fields that describe a GPU, and show their errors."""
    memory, capability = st.columns(2)
    texts = {}
    for column, name, example in ((memory, MEMORY_KEY, "16GiB"), (capability, CAPABILITY_KEY, "7.5")):
        field = plan_field(name)
        with column:
            typed = st.text_input(field.label, key=name, bind="query-params", placeholder=example, help=field.help)
        texts[name] = (typed or "").strip()
    plan().update(texts)
    given = [text for text in texts.values() if text]
    if len(given) == 1:
        st.caption("Give both to add this GPU to the others.")
    if len(given) < 2:
        return
    try:
        described_card(texts[MEMORY_KEY], texts[CAPABILITY_KEY])
    except InvalidArgument as error:
        # The message uses the label of the control.
        named = InvalidArgument(plan_field(error.argument).label, error.rule, error.value, error.nearest)
        st.error(sentence(str(named)), icon=":material/error:")


def _attached() -> list[Card]:
    """Draw the switch of this machine's GPUs; if it is on, return them with their free memory."""
    is_on = plan()[ATTACHED_KEY] = field_control(plan_field(ATTACHED_KEY))
    if not is_on:
        return []
    found, problem = session.attached()
    if problem:
        st.caption(sentence(session.why_no_gpu(problem)))
        return []
    jobs = session.jobs()
    return cards_to_plan_on([one for one, _ in found], jobs.worker_pid if jobs else None)


def card_controls() -> list[Card]:
    """Draw the choice of GPUs, and return them in the order of choosing.

    With workers, one worker's share of each GPU is returned.
    """
    _chosen()
    keys = (MEMORY_KEY, CAPABILITY_KEY, ATTACHED_KEY, WORKERS_KEY)
    with st.expander("Other GPUs and sharing", expanded=stays_open("cards", keys)):
        _described()
        attached = _attached()
        plan()[WORKERS_KEY] = field_control(plan_field(WORKERS_KEY))
    chosen = planned(DEFAULT)
    if not (chosen.gpus or chosen.gpu_memory or attached):
        return []
    return chosen.cards(lambda: attached)
