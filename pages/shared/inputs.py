"""The request's controls, the same on every page that has them, and bound to the page's address.

Each key is both the control's and the address's, so a link reproduces a plan.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import streamlit as st

from pages.shared.words import plain, sentence
from planner.errors import InvalidArgument, UnknownCard
from planner.gpus import CATALOGUE, DEFAULT_CARDS, Card, card_named
from planner.request import (
    MAX_BATCH,
    MAX_GUIDANCE_SCALE,
    MAX_PROMPT_TOKENS,
    MAX_SIDE,
    MAX_STEPS,
    MIN_SIDE,
    OFFLOADS,
    TASKS,
    VAE_SCALE_FACTOR,
    GenerationRequest,
    parse_finite,
    parse_whole,
)

_DEFAULT = GenerationRequest()
_DEFAULT_CARDS = [card_named(name).name for name in DEFAULT_CARDS]


def _truth(argument: str, text: str) -> bool:
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
        return getattr(_DEFAULT, self.name)


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
    _Field("safety_checker", _truth),
    _Field("vae_tiling", _truth),
    _Field("vae_slicing", _truth),
    _Field("attention_slicing", _truth),
    _Field("channels_last", _truth),
    _Field("offload", _same),
)
CARDS_KEY = "gpu"


def _plan() -> dict[str, Any]:
    """The plan as this session knows it: values by key, complete once the controls were drawn."""
    return st.session_state.setdefault("plan", {})


def _default_of(key: str) -> Any:
    return _DEFAULT_CARDS if key == CARDS_KEY else getattr(_DEFAULT, key)


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
    names = []
    for name in st.query_params.get_all(CARDS_KEY):
        try:
            names.append(card_named(name).name)
        except UnknownCard as error:
            refused.append(str(error).partition("; ")[0])
    if names:
        values[CARDS_KEY] = list(dict.fromkeys(names))
    return values, refused


def enter_page(page: str) -> None:
    """Bring the plan along when a page is opened, by its link or from another page; nothing on later runs.

    A bound control alone forgets a value that came from the address and was never touched, when the page changes.
    """
    if st.session_state.get("page") == page:
        return
    st.session_state["page"] = page
    plan = _plan()
    values, st.session_state["refused"] = _from_address()
    if values:
        plan.clear()
        plan.update(values)
    for key, value in plan.items():
        st.session_state[key] = value
        if value != _default_of(key):
            st.query_params[key] = value if key == CARDS_KEY else str(value)


def _size_controls() -> tuple[Any, Any]:
    columns = st.columns(2)
    sides = []
    for column, name in zip(columns, ("width", "height"), strict=True):
        with column:
            sides.append(
                st.number_input(
                    f"{name.capitalize()}, px",
                    MIN_SIDE,
                    MAX_SIDE,
                    getattr(_DEFAULT, name),
                    step=VAE_SCALE_FACTOR,
                    key=name,
                    bind="query-params",
                    help=f"{MIN_SIDE} to {MAX_SIDE}. txt2img needs a multiple of 8; img2img rounds down to one.",
                )
            )
    return sides[0], sides[1]


def _option_controls() -> dict[str, Any]:
    return {
        "safety_checker": st.toggle(
            "Safety checker",
            _DEFAULT.safety_checker,
            key="safety_checker",
            bind="query-params",
            help="A fourth model on the card, run on every picture. The pipeline loads it by default.",
        ),
        "vae_tiling": st.toggle(
            "VAE tiling", key="vae_tiling", bind="query-params", help="`pipe.vae.enable_tiling()`: decode in tiles."
        ),
        "vae_slicing": st.toggle(
            "VAE slicing",
            key="vae_slicing",
            bind="query-params",
            help="`pipe.vae.enable_slicing()`: one image at a time. Does nothing at batch 1.",
        ),
        "attention_slicing": st.toggle(
            "Attention slicing",
            key="attention_slicing",
            bind="query-params",
            help="`pipe.enable_attention_slicing()`: attention in slices, without the fused kernels.",
        ),
        "channels_last": st.toggle(
            "channels_last",
            key="channels_last",
            bind="query-params",
            help="UNet and VAE in `torch.channels_last`, the layout that tensor cores prefer.",
        ),
        "offload": st.segmented_control(
            "Offload",
            OFFLOADS,
            default=_DEFAULT.offload,
            required=True,
            key="offload",
            bind="query-params",
            help="model: `pipe.enable_model_cpu_offload()` keeps one component on the card at a time.",
        ),
    }


def request_controls() -> GenerationRequest | None:
    """Draw the controls; the request they stand for, or None after saying what is wrong with it."""
    for text in st.session_state.get("refused", ()):
        st.warning(f"This link was not taken whole: {plain(text)}.", icon=":material/link_off:")
    task = st.segmented_control(
        "Task",
        TASKS,
        default=_DEFAULT.task,
        required=True,
        key="task",
        bind="query-params",
        help="img2img starts from an image, txt2img from noise alone.",
    )
    width, height = _size_controls()
    columns = st.columns(2)
    with columns[0]:
        batch = st.number_input(
            "Batch",
            1,
            MAX_BATCH,
            _DEFAULT.batch,
            key="batch",
            bind="query-params",
            help="Requests served together: that many prompts and, for img2img, that many images.",
        )
    with columns[1]:
        guidance_scale = st.number_input(
            "Guidance scale",
            0.0,
            MAX_GUIDANCE_SCALE,
            _DEFAULT.guidance_scale,
            step=0.5,
            key="guidance_scale",
            bind="query-params",
            help="Above 1 the UNet runs on twice the batch.",
        )
    columns = st.columns(2)
    with columns[0]:
        steps = st.number_input(
            "Steps",
            1,
            MAX_STEPS,
            _DEFAULT.steps,
            key="steps",
            bind="query-params",
            help="Denoising steps: they take time, and do not move the peak.",
        )
    with columns[1]:
        prompt_tokens = st.number_input(
            "Prompt tokens",
            1,
            MAX_PROMPT_TOKENS,
            _DEFAULT.prompt_tokens,
            key="prompt_tokens",
            bind="query-params",
            help="The pipeline pads every prompt to 77 tokens, so this changes the formula and nothing else.",
        )
    with st.expander("Options"):
        options = _option_controls()
    values = {
        "task": task,
        "width": width,
        "height": height,
        "batch": batch,
        "guidance_scale": guidance_scale,
        "steps": steps,
        "prompt_tokens": prompt_tokens,
        **options,
    }
    _plan().update(values)
    try:
        request = GenerationRequest.from_dict(values)
    except InvalidArgument as error:
        st.error(sentence(str(error)), icon=":material/error:")
        return None
    if request.is_rounded:
        st.caption(
            f"img2img works on {request.effective_width}×{request.effective_height}: it rounds down to multiples of 8."
        )
    return request


def card_controls() -> list[Card]:
    """Draw the choice of cards; those chosen, in catalogue order."""
    names = st.multiselect(
        "Cards",
        [card.name for card in CATALOGUE],
        default=_DEFAULT_CARDS,
        key=CARDS_KEY,
        bind="query-params",
        placeholder="Choose cards",
        help="Memory, context and compute capability of each are in the catalogue, with sources.",
    )
    _plan()[CARDS_KEY] = names
    return [card for card in CATALOGUE if card.name in names]
