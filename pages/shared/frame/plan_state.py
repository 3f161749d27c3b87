"""The plan of a session: what its controls stand at, how that is a `Plan`, and how it moves between pages.

This is the one place where Streamlit's session state and address meet `planner.plan`.
"""

from collections.abc import Iterable, Mapping
from typing import Any
from urllib.parse import urlencode

import streamlit as st

from planner.cards.lookup import described_card
from planner.errors import InvalidArgument, PlannerError, UnknownCard
from planner.plan import (
    ATTACHED,
    DEFAULT_GPUS,
    GPU_KEY,
    PLAN_KEYS,
    Plan,
    default_of,
    name_meant,
    plan_field,
    read_query,
)
from planner.request import GenerationRequest

# Where the app answers checks that cannot run Python.
API_PATH = "/api/fit"
CARDS_KEY, DEFAULT_CARD_NAMES = GPU_KEY, list(DEFAULT_GPUS)
BASIS_KEY, PUBLISHED_KEY, IMAGES_KEY, WORKERS_KEY = "basis", "published", "images", "workers"
MEMORY_KEY, CAPABILITY_KEY, ATTACHED_KEY = "gpu_memory", "compute_capability", "attached"
# How the page draws its map, which is no part of the plan.
MAP_KEY, MAP_ALL_KEY, MAP_SHAPE_KEY, MAP_CARD_KEY = "map", "map_all", "map_shape", "map_card"
VIEW_KEYS = (MAP_KEY, MAP_ALL_KEY, MAP_SHAPE_KEY, MAP_CARD_KEY)
# What else an address may hold on the pages that take a plan: Verify's job and its emulated capacity.
_OTHER_KEYS = ("job", "capacity")
_PLAN_PAGES = ("Plan", "Verify")
# The page whose address names GPUs that are looked at there, and are not the plan's.
_LOOKS_AT_CARDS = "Accuracy"
# What a link from Plan calls such a GPU: Streamlit drops a name that a control of the page left behind is bound to.
LOOK_KEY = "how_wrong"


def plan() -> dict[str, Any]:
    """Give the session's plan: values by name, complete once the controls were drawn."""
    return st.session_state.setdefault("plan", {})


def planned(request: GenerationRequest) -> Plan:
    """Give the plan that the controls stand for, with this request.

    A GPU whose description is incomplete or wrong is left out: its controls say what is lacking.
    """
    values: dict[str, Any] = {GPU_KEY: DEFAULT_CARD_NAMES}
    values |= {name: value for name, value in plan().items() if name in PLAN_KEYS}
    try:
        described_card(values.get(MEMORY_KEY, ""), values.get(CAPABILITY_KEY, ""))
    except InvalidArgument:
        values |= {MEMORY_KEY: "", CAPABILITY_KEY: ""}
    return Plan.from_values(values | request.to_dict())


def check_query(of: Plan) -> str:
    """Write the query of ``/api/fit`` that asks what this plan shows."""
    return urlencode(of.to_query())


def stays_open(name: str, keys: Iterable[str]) -> bool:
    """Tell whether an expander is drawn open: once a control inside it stands at something else than its default.

    What a link sets is seen that way. The expander stays open after the last value returns to its default.
    """
    opened: set[str] = st.session_state.setdefault("opened", set())
    if any(st.session_state.get(key, default_of(key)) != default_of(key) for key in keys):
        opened.add(name)
    return name in opened


def _address() -> list[tuple[str, str]]:
    """List the names and values of the page's address."""
    return [(name, text) for name in st.query_params for text in st.query_params.get_all(name)]


def _from_address() -> tuple[dict[str, Any], list[str]]:
    """Read the values in the address that its fields can take, and say what is wrong with the others.

    Streamlit drops a value that a control cannot show without a word; a link that was not taken whole should say so.
    """
    values, errors = read_query(_address())
    if ATTACHED in values.get(GPU_KEY, ()):
        # The machine's own GPUs have a control of their own.
        values |= {GPU_KEY: [name for name in values[GPU_KEY] if name != ATTACHED], ATTACHED_KEY: True}
    return values, [_instead(error) for error in errors]


def _instead(error: PlannerError) -> str:
    """Say what is wrong with a value of the address, and what is shown instead."""
    if isinstance(error, UnknownCard):
        return str(error).partition("; ")[0]
    if not isinstance(error, InvalidArgument):
        return str(error)
    field = plan_field(error.argument)
    return f"{error}; {field.text(field.default) or 'none'} is shown instead"


def _wrong_names() -> list[str]:
    """Say which names in the address of a page that takes a plan are unknown, or are given twice."""
    known = {*PLAN_KEYS, *VIEW_KEYS, *_OTHER_KEYS}
    named = [(repr(name), name_meant(name)) for name in st.query_params if name not in known]
    told = ", ".join(f"{name} ({meant})" if meant else name for name, meant in named)
    unknown = [f"{told} {'is no name' if len(named) == 1 else 'are no names'} of a plan and left out"] if named else []
    given = ((name, st.query_params.get_all(name)) for name in PLAN_KEYS if name != CARDS_KEY)
    twice = [f"{name} is given {len(values)} times; the last one counts" for name, values in given if len(values) > 1]
    return unknown + twice


def take(changes: Mapping[str, Any]) -> None:
    """Put these values into the plan's controls, as if they had been entered; for callbacks, before controls are drawn.

    Being bound, the controls change the address, each by itself: Streamlit lets nobody else write their parts of it.
    """
    for key, value in changes.items():
        st.session_state[key] = plan()[key] = value


def enter_page(page: str) -> None:
    """Bring the plan along when a page is opened, by its link or from another page; nothing on later runs.

    A bound control alone forgets a value that came from the address and was never touched, when the page changes.
    """
    if st.session_state.get("page") == page:
        return
    st.session_state["page"] = page
    known = plan()
    values, refused = _from_address()
    is_of_plan = page != _LOOKS_AT_CARDS
    if not is_of_plan:
        values.pop(CARDS_KEY, None)
        if values and CARDS_KEY in known:
            values[CARDS_KEY] = known[CARDS_KEY]
    st.session_state["refused"] = refused + (_wrong_names() if page in _PLAN_PAGES else [])
    if values:
        known.clear()
        known.update(values)
    for key, value in known.items():
        st.session_state[key] = value
    brought = {
        key: (value or "") if key == CARDS_KEY else plan_field(key).text(value)
        for key, value in known.items()
        if value != default_of(key) and (is_of_plan or key != CARDS_KEY)
    }
    renamed = is_of_plan and CARDS_KEY in values and (values[CARDS_KEY] or [""]) != st.query_params.get_all(CARDS_KEY)
    if renamed:
        brought[CARDS_KEY] = values[CARDS_KEY]
    linked = [] if is_of_plan else st.query_params.get_all(LOOK_KEY)
    if linked:
        brought = {name: st.query_params.get_all(name) for name in st.query_params if name != LOOK_KEY} | brought
        st.query_params.from_dict(brought | {CARDS_KEY: linked})
        st.rerun()
    # At once: each write of its own would be a step of the browser's back button.
    st.query_params.update(brought)
    if renamed or (brought and not values):
        # Reached by the back button, an address without the plan puts bound controls to their defaults in this run,
        # over anything that was set, and the choice of cards knows none by its other names; the next run starts from
        # the address as it is now.
        st.rerun()
