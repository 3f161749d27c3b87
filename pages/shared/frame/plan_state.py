"""Keep the plan of a session: the values of its controls, its `Plan`, and its way from page to page.

Only this file translates between Streamlit's session state, the address and `planner.plan`.
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
from planner.request import FIELDS, GenerationRequest

# The address of the HTTP answers, for scripts that cannot run Python.
API_PATH = "/api/fit"
# Where it draws a plan for a README, a wiki or a ticket.
PICTURE_PATH = "/api/plan.svg"
CARDS_KEY, DEFAULT_CARD_NAMES = GPU_KEY, list(DEFAULT_GPUS)
BASIS_KEY, PUBLISHED_KEY, IMAGES_KEY, WORKERS_KEY = "basis", "published", "images", "workers"
MEMORY_KEY, CAPABILITY_KEY, ATTACHED_KEY = "gpu_memory", "compute_capability", "attached"
# How the page draws its map. This is in the address, but is no part of the plan.
MAP_KEY, MAP_ALL_KEY, MAP_SHAPE_KEY, MAP_CARD_KEY = "map", "map_all", "map_shape", "map_card"
# The tab of Plan that is open.
TAB_KEY = "tab"
TABS = FIT, SIZES, WHY, IMAGES, EXPORT = "Make it fit", "Sizes and map", "Why", "Several images", "Export"
MAPS = BY_GPU, BY_BATCH = "size by GPU", "size by batch"
# The first of these is shown if a link has another value.
_VIEWS = {TAB_KEY: TABS, MAP_KEY: MAPS}
VIEW_KEYS = (MAP_KEY, MAP_ALL_KEY, MAP_SHAPE_KEY, MAP_CARD_KEY, TAB_KEY)
# What is seldom changed: it moves no memory, or chooses what the answer rests on.
ADVANCED_KEYS = (*(field.name for field in FIELDS if field.changes != "memory"), BASIS_KEY, PUBLISHED_KEY)
# Other names that the address of a page with a plan may have: Verify's job and its emulated capacity.
_OTHER_KEYS = ("job", "capacity")
_PLAN_PAGES = ("Plan", "Verify")
# The page whose address names GPUs that are not those of the plan.
_LOOKS_AT_CARDS = "Accuracy"
# The name of such a GPU in a link from Plan: Streamlit drops a name to which a control of the old page is bound.
LOOK_KEY = "how_wrong"


def plan() -> dict[str, Any]:
    """Return the session's plan: values by name, complete once the controls were drawn."""
    return st.session_state.setdefault("plan", {})


def planned(request: GenerationRequest) -> Plan:
    """Return the plan of the controls, with this request.

    A GPU whose description is incomplete or wrong is left out; its controls show the error.
    """
    values: dict[str, Any] = {GPU_KEY: DEFAULT_CARD_NAMES}
    values |= {name: value for name, value in plan().items() if name in PLAN_KEYS}
    try:
        described_card(values.get(MEMORY_KEY, ""), values.get(CAPABILITY_KEY, ""))
    except InvalidArgument:
        values |= {MEMORY_KEY: "", CAPABILITY_KEY: ""}
    return Plan.from_values(values | request.to_dict())


def check_query(of: Plan) -> str:
    """Return the query of ``/api/fit`` for this plan."""
    return urlencode(of.to_query())


def stays_open(name: str, keys: Iterable[str]) -> bool:
    """Return whether an expander is open because a control in it differs from its default.

    Values set by a link are thus in sight. The expander stays open after the last value returns to its default.
    """
    opened: set[str] = st.session_state.setdefault("opened", set())
    if any(st.session_state.get(key, default_of(key)) != default_of(key) for key in keys):
        opened.add(name)
    return name in opened


def linked() -> tuple[Plan, list[str]]:
    """Return the plan of the page's address alone, and what is wrong with it, for a page without controls.

    Values that do not go together are left out, all of them.
    """
    values, problems = _from_address()
    try:
        return Plan.from_values(values), problems
    except PlannerError as error:
        return Plan(), [*problems, f"{error}; the default plan is shown instead"]


def _address() -> list[tuple[str, str]]:
    """Return the names and values of the page's address."""
    return [(name, text) for name in st.query_params for text in st.query_params.get_all(name)]


def _from_address() -> tuple[dict[str, Any], list[str]]:
    """Return the valid values of the address, and messages about the others.

    Streamlit silently drops a value that a control cannot show, so the page says it.
    """
    values, errors = read_query(_address())
    if ATTACHED in values.get(GPU_KEY, ()):
        # The machine's own GPUs have a control of their own.
        values |= {GPU_KEY: [name for name in values[GPU_KEY] if name != ATTACHED], ATTACHED_KEY: True}
    return values, [_instead(error) for error in errors]


def _instead(error: PlannerError) -> str:
    """Describe the error of a value in the address, and the value that is shown instead."""
    if isinstance(error, UnknownCard):
        return str(error).partition("; ")[0]
    if not isinstance(error, InvalidArgument):
        return str(error)
    field = plan_field(error.argument)
    return f"{error}; {field.text(field.default) or 'none'} is shown instead"


def _wrong_names() -> list[str]:
    """Describe unknown and repeated names, and unknown views, in the address of a page that takes a plan."""
    known = {*PLAN_KEYS, *VIEW_KEYS, *_OTHER_KEYS}
    named = [(repr(name), name_meant(name)) for name in st.query_params if name not in known]
    names = ", ".join(f"{name} ({meant})" if meant else name for name, meant in named)
    unknown = [f"unknown parameter{'' if len(named) == 1 else 's'} {names}"] if named else []
    given = ((name, st.query_params.get_all(name)) for name in PLAN_KEYS if name != CARDS_KEY)
    twice = [f"{name} is given {len(values)} times; the last one counts" for name, values in given if len(values) > 1]
    views = [
        f"{name} must be one of {', '.join(known)}, got {given!r}; {known[0]} is shown instead"
        for name, known in _VIEWS.items()
        if (given := st.query_params.get(name)) is not None and given not in known
    ]
    return unknown + twice + views


def take(changes: Mapping[str, Any]) -> None:
    """Set controls of the plan by their keys.

    This is for callbacks, which run before controls are drawn. The controls then change the address themselves:
    Streamlit lets no other code write the names of bound controls.
    """
    for key, value in changes.items():
        st.session_state[key] = plan()[key] = value


def enter_page(page: str) -> None:
    """Bring the plan along when a page is opened, by a link or from another page.

    Later runs of the page change nothing. Without this, a bound control would forget a value from the address that
    the user never touched when the page changes.
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
    if is_of_plan and IMAGES_KEY in st.query_params and IMAGES_KEY not in values:
        # The control that would correct it is drawn in its tab alone.
        del st.query_params[IMAGES_KEY]
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
    # All names are written at once, because each write is a step of the browser's back button.
    st.query_params.update(brought)
    if renamed or (brought and not values):
        # If the back button led to an address without the plan, bound controls have their defaults in this run, and
        # the choice of GPUs does not know aliases. The next run starts from the address as it is now.
        st.rerun()
