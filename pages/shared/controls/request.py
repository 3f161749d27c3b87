"""The controls of a request, bound to the page's address.

The key of a control is also its name in the address, so that a link reproduces a plan. Labels, ranges and help come
from the request's fields.
"""

from collections.abc import Sequence
from itertools import groupby
from typing import Any

import streamlit as st
from streamlit.delta_generator import DeltaGenerator

from pages.shared.controls.image import image_control
from pages.shared.controls.presets import preset_controls
from pages.shared.controls.prompt import prompt_control
from pages.shared.frame.escape import plain, sentence
from pages.shared.frame.plan_state import BASIS_KEY, PUBLISHED_KEY, plan, stays_open
from planner.errors import InvalidArgument
from planner.fields import GROUPS, Choice, Field, Number, Switch, Whole
from planner.plan import plan_field
from planner.request import FIELDS, GenerationRequest, field_named, unmet

# Those that change memory come first, and those that change the formula alone come last.
_ORDER = ("memory", "time", "formula")
_NUMBERS = sorted(
    (field for field in FIELDS if field.group is None and isinstance(field, (Whole, Number))),
    key=lambda field: _ORDER.index(field.changes),
)
# The pipeline's options by what they are about.
_GROUPS = {group: [field for field in FIELDS if field.group == group] for group in GROUPS}
_GROUPED = [field.name for fields in _GROUPS.values() for field in fields]


def field_control(field: Field, *, wrap: bool = False, reason: str = "") -> Any:
    """Draw the control of a field, bound to the address, and return its value.

    With a `reason` it is disabled, and its help says why.

    Raises:
        TypeError: fields of this kind have no control.
    """
    name, text = field.name, f"{field.help}  \n**Not now**: {reason}." if reason else field.help
    if isinstance(field, (Whole, Number)):
        return st.number_input(
            field.label,
            field.low,
            field.high,
            field.default,
            step=field.step,
            key=name,
            bind="query-params",
            help=text,
            disabled=bool(reason),
        )
    if isinstance(field, Switch):
        return st.toggle(field.label, field.default, key=name, bind="query-params", help=text, disabled=bool(reason))
    if isinstance(field, Choice):
        return st.segmented_control(
            field.label,
            field.choices,
            default=field.default,
            required=True,
            key=name,
            bind="query-params",
            wrap=wrap,
            help=text,
            disabled=bool(reason),
        )
    raise TypeError(f"{type(field).__name__} has no control")


def _pairs(of: Sequence[Field]) -> dict[str, Any]:
    """Draw the controls of these fields, two in a row, and return their values by name."""
    values = {}
    for start in range(0, len(of), 2):
        for column, field in zip(st.columns(2), of[start : start + 2], strict=False):
            with column:
                values[field.name] = field_control(field, reason=_why_not(field))
    return values


def _why_not(field: Field) -> str:
    """Say why a control is disabled: its option needs what the others lack; empty where it applies.

    An option that was on when it ceased to apply stays enabled, so that it can be switched off.
    """
    values = {each.name: st.session_state.get(each.name, each.default) for each in FIELDS}
    enabled: set[str] = st.session_state.setdefault("kept-enabled", set())
    need = unmet(field.name, values)
    if need is None:
        enabled.discard(field.name)
        return ""
    if values[field.name] != field.default:
        # Streamlit discards what was typed into a control that the same run disables.
        enabled.add(field.name)
    return "" if field.name in enabled else f"it {need.rule}"


def _options() -> dict[str, Any]:
    """Draw the pipeline's options in their groups, numbers two in a row, and return their values by name."""
    values = {}
    for group, fields in _GROUPS.items():
        with st.container(gap="small"):
            st.markdown(f"**{group}**")
            for is_number, of in groupby(fields, lambda field: isinstance(field, (Whole, Number))):
                if is_number:
                    values |= _pairs(list(of))
                else:
                    values |= {field.name: field_control(field, wrap=True, reason=_why_not(field)) for field in of}
    return values


def _refused_view() -> None:
    """Draw in one box what a link says that could not be taken up."""
    if refused := st.session_state.get("refused"):
        items = "\n".join(f"- {plain(text)}." for text in refused)
        st.warning(f"Parts of this link were not used:\n{items}", icon=":material/link_off:")


def request_controls(advanced: DeltaGenerator | None = None) -> GenerationRequest | None:
    """Draw the controls; return the request they stand for, or None after saying what is wrong with it.

    With `advanced`, what moves no memory is drawn there.
    """
    _refused_view()
    values = {"task": field_control(field_named("task"))}
    preset_controls()
    values |= _pairs([field for field in _NUMBERS if advanced is None or field.changes == "memory"])
    # Beside the numbers it is about, and not below what is folded away.
    messages = st.container()
    with st.expander("Options", expanded=stays_open("options", _GROUPED)):
        values |= _options()
    with st.expander("Size from an image"):
        image_control()
    with advanced or st.expander("Prompt tokens from a prompt"):
        if advanced is not None:
            values |= _pairs([field for field in _NUMBERS if field.changes != "memory"])
        prompt_control()
    plan().update(values)
    try:
        request = GenerationRequest.from_dict(values)
    except InvalidArgument as error:
        messages.error(sentence(str(error)), icon=":material/error:")
        return None
    if request.is_rounded:
        messages.caption(
            f"img2img runs at {request.effective_width}×{request.effective_height}: it rounds down to multiples of 8."
        )
    return request


def basis_control() -> str:
    """Draw the choice of the basis of the verdicts, and return it."""
    basis = plan()[BASIS_KEY] = field_control(plan_field(BASIS_KEY), wrap=True)
    return basis


def published_control() -> bool:
    """Draw the switch of the reference runs, and return whether they count."""
    counts = plan()[PUBLISHED_KEY] = field_control(plan_field(PUBLISHED_KEY))
    return counts
