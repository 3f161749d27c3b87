"""The controls of the cards to plan on: those of the catalogue, the machine's own, any other, and shares of them."""

import streamlit as st

from cache.machine.attached import cards_to_plan_on
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
    stays_open,
)
from planner.cards.lookup import CATALOGUE, MAX_WORKERS, SLICES, Card, card_named, described_card, shared_card
from planner.errors import InvalidArgument


def _chosen() -> list[Card]:
    names = st.multiselect(
        "Cards",
        [card.name for card in (*CATALOGUE, *SLICES)],
        default=DEFAULT_CARD_NAMES,
        key=CARDS_KEY,
        bind="query-params",
        placeholder="Choose cards",
        help="Type to search, MIG slices too: 3g finds three of them. `python -m planner gpus --json` has the sources "
        "of each number; those of slices are estimates.",
    )
    plan()[CARDS_KEY] = names
    return [card_named(name) for name in names]


def _described() -> list[Card]:
    """The card that is typed in, where it is one."""
    memory, capability = st.columns(2)
    with memory:
        size = st.text_input(
            "Card memory",
            key=MEMORY_KEY,
            bind="query-params",
            placeholder="16GiB",
            help="Of a card that is not in the list: what it has usable, as torch reports it, in KiB, MiB or GiB.",
        )
    with capability:
        version = st.text_input(
            "Compute capability",
            key=CAPABILITY_KEY,
            bind="query-params",
            placeholder="7.5",
            help="It says which kernels run, and with how much workspace. NVIDIA lists it for every card.",
        )
    size, version = (size or "").strip(), (version or "").strip()
    plan().update({MEMORY_KEY: size, CAPABILITY_KEY: version})
    if bool(size) != bool(version):
        st.caption("Give both, and the card stands beside the others.")
    if not (size and version):
        return []
    try:
        return [described_card(size, version)]
    except InvalidArgument as error:
        # Under the name that its control has here.
        name = {MEMORY_KEY: "card memory", CAPABILITY_KEY: "compute capability"}[error.argument]
        named = InvalidArgument(name, error.rule, error.value, error.nearest)
        st.error(sentence(str(named)), icon=":material/error:")
        return []


def _attached() -> list[Card]:
    """The cards of this machine, each with the memory that is free on it now, where they are asked for."""
    wanted = st.toggle(
        "Cards in this machine",
        key=ATTACHED_KEY,
        bind="query-params",
        help="As the driver sees them, with the memory that is free on each now. That is the machine where the app "
        "runs.",
    )
    plan()[ATTACHED_KEY] = wanted
    if not wanted:
        return []
    found, problem = session.attached()
    if problem:
        st.caption(sentence(problem.reason))
        return []
    jobs = session.jobs()
    return cards_to_plan_on([one for one, _ in found], jobs.worker_pid if jobs else None)


def _workers() -> int:
    workers = st.number_input(
        "Workers per card",
        1,
        MAX_WORKERS,
        1,
        step=1,
        key=WORKERS_KEY,
        bind="query-params",
        help="Processes that share each card evenly. Each loads the whole pipeline and has a CUDA context of its own.",
    )
    plan()[WORKERS_KEY] = workers
    return workers


def card_controls() -> list[Card]:
    """Draw the choice of cards; those chosen, in the order of choosing, or one worker's share of each."""
    cards = _chosen()
    keys = (MEMORY_KEY, CAPABILITY_KEY, ATTACHED_KEY, WORKERS_KEY)
    with st.expander("Other cards, and sharing", expanded=stays_open("cards", keys)):
        cards += _described() + _attached()
        workers = _workers()
    return [shared_card(card, workers) for card in dict.fromkeys(cards)]
