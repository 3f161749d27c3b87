"""The plan of a session: what its controls stand at, what its address says, and how it moves between pages."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any
from urllib.parse import urlencode

import streamlit as st

from planner.alternatives.images import parse_images
from planner.cards.lookup import DEFAULT_CARDS, card_named, shared_card
from planner.errors import InvalidArgument, UnknownCard
from planner.request import GenerationRequest, parse_finite, parse_whole

DEFAULT = GenerationRequest()
DEFAULT_CARD_NAMES = [card_named(name).name for name in DEFAULT_CARDS]


def truth(argument: str, text: str) -> bool:
    """What ``true`` or ``false`` in an address stands for.

    Raises:
        InvalidArgument: the text is neither.
    """
    if text.lower() not in ("true", "false"):
        raise InvalidArgument(argument, "must be true or false", text)
    return text.lower() == "true"


@dataclass(frozen=True)
class _Field:
    """A request field as it appears in an address."""

    name: str
    parse: Callable[[str, str], Any]

    @property
    def default(self) -> Any:
        return getattr(DEFAULT, self.name)


def _same(_argument: str, text: str) -> str:
    return text


FIELDS = (
    _Field("task", _same),
    _Field("width", parse_whole),
    _Field("height", parse_whole),
    _Field("batch", parse_whole),
    _Field("guidance_scale", parse_finite),
    _Field("steps", parse_whole),
    _Field("prompt_tokens", parse_whole),
    _Field("safety_checker", truth),
    _Field("vae_tiling", truth),
    _Field("vae_slicing", truth),
    _Field("attention_slicing", truth),
    _Field("channels_last", truth),
    _Field("offload", _same),
)
CARDS_KEY = "gpu"
BASIS_KEY = "basis"
# The bases that a plan can be asked for, the most trusted first.
BASES = ("best", "measured", "calibrated", "dry-run", "formula")
DEFAULT_BASIS = BASES[0]
# Whether published runs that ship count as evidence.
PUBLISHED_KEY = "published"
# A card that is not in the catalogue: its memory and compute capability, as they were typed.
MEMORY_KEY, CAPABILITY_KEY = "gpu_memory", "compute_capability"
# Whether the cards in this machine are planned on as well.
ATTACHED_KEY = "attached"
# Processes that share each card.
WORKERS_KEY = "workers"
# Images that run one after another, as planner.alternatives.images writes them.
IMAGES_KEY = "images"


def _workers(argument: str, text: str) -> int:
    workers = parse_whole(argument, text)
    # Its rule is that of a share, whatever the card.
    shared_card(card_named(DEFAULT_CARDS[0]), workers)
    return workers


def _images(_argument: str, text: str) -> str:
    parse_images(text)
    return text


# Beside the request and the choices of cards and basis: how each is read from an address, and its default. What a
# person typed is taken as it is, and its control says what is wrong with it.
_MORE: dict[str, tuple[Callable[[str, str], Any], Any]] = {
    PUBLISHED_KEY: (truth, True),
    MEMORY_KEY: (_same, ""),
    CAPABILITY_KEY: (_same, ""),
    ATTACHED_KEY: (truth, False),
    WORKERS_KEY: (_workers, 1),
    IMAGES_KEY: (_images, ""),
}

# Every name of a plan, as its address has them.
# Where the app answers checks that cannot run Python.
API_PATH = "/api/fit"

PLAN_KEYS = (*(field.name for field in FIELDS), CARDS_KEY, BASIS_KEY, *_MORE)
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


def name_meant(name: str) -> str | None:
    """The name of a plan that is nearest to one that is none, as a question; None where none is near."""
    close = get_close_matches(name.lower(), PLAN_KEYS, n=1)
    return f"did you mean {close[0]}?" if close else None


def plan() -> dict[str, Any]:
    """The plan as this session knows it: values by key, complete once the controls were drawn."""
    return st.session_state.setdefault("plan", {})


def default_of(key: str) -> Any:
    """What a plan has under this name where nothing else was chosen."""
    if key == BASIS_KEY:
        return DEFAULT_BASIS
    if key in _MORE:
        return _MORE[key][1]
    return DEFAULT_CARD_NAMES if key == CARDS_KEY else getattr(DEFAULT, key)


def check_query() -> str:
    """The query of ``/api/fit`` that asks what this plan shows: what is not at its default, and every card by name."""
    chosen = {key: value for key, value in plan().items() if key in PLAN_KEYS and value != default_of(key)}
    named = chosen | {CARDS_KEY: plan().get(CARDS_KEY, DEFAULT_CARD_NAMES) or [""]}
    return urlencode(
        {key: str(value).lower() if isinstance(value, bool) else value for key, value in named.items()}, doseq=True
    )


def stays_open(name: str, keys: Iterable[str]) -> bool:
    """Whether an expander is drawn open: once a control inside it stands at something else than its default.

    What a link sets is seen that way. It is not closed again under the hand that puts the last one back.
    """
    opened: set[str] = st.session_state.setdefault("opened", set())
    if any(st.session_state.get(key, default_of(key)) != default_of(key) for key in keys):
        opened.add(name)
    return name in opened


def _from_address() -> tuple[dict[str, Any], list[str]]:
    """The values in the address that its fields can take, and what is wrong with the others.

    Streamlit drops a value that a control cannot show without a word; a link that was not taken whole should say so.
    """
    values: dict[str, Any] = {}
    refused = []
    for field in FIELDS:
        if field.name not in st.query_params:
            continue
        try:
            value = field.parse(field.name, st.query_params[field.name])
            # img2img takes every size, so that the field's own rule speaks and not the task's.
            GenerationRequest.from_dict({"task": "img2img", field.name: value})
            values[field.name] = value
        except InvalidArgument as error:
            refused.append(f"{error}; {field.default} is shown instead")
    given = st.query_params.get_all(CARDS_KEY)
    names = []
    for name in filter(None, given):
        try:
            names.append(card_named(name).name)
        except UnknownCard as error:
            refused.append(str(error).partition("; ")[0])
    # A single one without a name is how an address says that none is chosen.
    if names or given == [""]:
        values[CARDS_KEY] = list(dict.fromkeys(names))
    for key, (parse, default) in _MORE.items():
        if key not in st.query_params:
            continue
        try:
            values[key] = parse(key, st.query_params[key])
        except InvalidArgument as error:
            refused.append(f"{error}; {'none' if default == '' else default} is shown instead")
    basis = st.query_params.get(BASIS_KEY)
    if basis in BASES:
        values[BASIS_KEY] = basis
    elif basis is not None:
        error = InvalidArgument(BASIS_KEY, f"must be one of {', '.join(BASES)}", basis)
        refused.append(f"{error}; {DEFAULT_BASIS} is shown instead")
    return values, refused


def _wrong_names() -> list[str]:
    """What is wrong with the names in the address of a page that takes a plan: no control has them, or one twice."""
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
        key: (value or "") if key == CARDS_KEY else str(value)
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
