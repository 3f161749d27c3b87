"""The request's controls, the same on every page that has them, and bound to the page's address.

Each key is both the control's and the address's, so a link reproduces a plan.
"""

from typing import Any

import streamlit as st

from pages.shared.controls.image import image_control
from pages.shared.controls.presets import preset_controls
from pages.shared.controls.prompt import prompt_control
from pages.shared.frame.escape import plain, sentence
from pages.shared.frame.plan_state import BASES, BASIS_KEY, DEFAULT, DEFAULT_BASIS, PUBLISHED_KEY, plan, stays_open
from planner.errors import InvalidArgument
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
)

_SIZE_HELP = f"{MIN_SIDE} to {MAX_SIDE}. txt2img needs a multiple of 8; img2img rounds down to one."
# Key, label, smallest, largest, step, help: drawn two in a row.
_NUMBERS: tuple[tuple[str, str, Any, Any, Any, str], ...] = (
    ("width", "Width, px", MIN_SIDE, MAX_SIDE, VAE_SCALE_FACTOR, _SIZE_HELP),
    ("height", "Height, px", MIN_SIDE, MAX_SIDE, VAE_SCALE_FACTOR, _SIZE_HELP),
    (
        "batch",
        "Batch",
        1,
        MAX_BATCH,
        1,
        "Requests served together: that many prompts and, for img2img, that many images.",
    ),
    (
        "guidance_scale",
        "Guidance scale",
        0.0,
        MAX_GUIDANCE_SCALE,
        0.5,
        "Above 1 the UNet runs on twice the batch.",
    ),
    (
        "steps",
        "Steps",
        1,
        MAX_STEPS,
        1,
        "They take time and do not move the peak. img2img runs four in five, at its default strength of 0.8.",
    ),
    (
        "prompt_tokens",
        "Prompt tokens",
        1,
        MAX_PROMPT_TOKENS,
        1,
        "The pipeline pads every prompt to 77 tokens, so this changes the formula and nothing else.",
    ),
)


_OPTIONS = ("safety_checker", "vae_tiling", "vae_slicing", "attention_slicing", "channels_last", "offload")


def _number_controls() -> dict[str, Any]:
    values = {}
    for start in range(0, len(_NUMBERS), 2):
        for column, (key, label, low, high, step, text) in zip(st.columns(2), _NUMBERS[start : start + 2], strict=True):
            with column:
                values[key] = st.number_input(
                    label, low, high, getattr(DEFAULT, key), step=step, key=key, bind="query-params", help=text
                )
    return values


def _option_controls() -> dict[str, Any]:
    return {
        "safety_checker": st.toggle(
            "Safety checker",
            DEFAULT.safety_checker,
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
            default=DEFAULT.offload,
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
    values: dict[str, Any] = {
        "task": st.segmented_control(
            "Task",
            TASKS,
            default=DEFAULT.task,
            required=True,
            key="task",
            bind="query-params",
            help="img2img starts from an image, txt2img from noise alone.",
        )
    }
    preset_controls()
    values |= _number_controls()
    # Beside the numbers it is about, and not below what is folded away.
    said = st.container()
    with st.expander("Options", expanded=stays_open("options", _OPTIONS)):
        values |= _option_controls()
    with st.expander("From a prompt or an image"):
        prompt_control()
        image_control()
    plan().update(values)
    try:
        request = GenerationRequest.from_dict(values)
    except InvalidArgument as error:
        said.error(sentence(str(error)), icon=":material/error:")
        return None
    if request.is_rounded:
        said.caption(
            f"img2img works on {request.effective_width}×{request.effective_height}: it rounds down to multiples of 8."
        )
    return request


def basis_control() -> str:
    """Draw the choice of what the verdicts rest on."""
    basis = st.segmented_control(
        "Basis",
        BASES,
        default=DEFAULT_BASIS,
        required=True,
        key=BASIS_KEY,
        bind="query-params",
        wrap=True,
        help="measured: a run of this very request on such a card. calibrated: the dry run corrected by runs of "
        "such cards, with an interval. dry-run: every allocation of the real modules, replayed on a virtual card. "
        "formula: the published closed form. best: the first of these that has an answer.",
    )
    plan()[BASIS_KEY] = basis
    return basis


def published_control() -> bool:
    """Draw the switch of the published runs; whether they count."""
    counts = st.toggle(
        "Count published runs",
        True,
        key=PUBLISHED_KEY,
        bind="query-params",
        help="Measurements that others published, each with its source, ship with the planner and count beside the "
        "history's own. Off: only your own and imported runs count.",
    )
    plan()[PUBLISHED_KEY] = counts
    return counts
