"""Sizes that people ask for by name, and the turn between landscape and portrait."""

import streamlit as st

from pages.shared.frame.plan_state import take
from planner.request import DEFAULT

# Each is a multiple of 8 on both sides, so that both tasks take it.
PRESETS: dict[tuple[int, int], str] = {
    (512, 512): "square",
    (512, 768): "portrait",
    (768, 512): "landscape",
    (768, 768): "square",
    (1024, 1024): "square",
    (1280, 720): "720p",
    (1920, 1080): "1080p",
    (2048, 2048): "square",
    (3840, 2160): "4K",
}
_KEY = "preset"


def _size() -> tuple[int, int]:
    return st.session_state.get("width", DEFAULT.width), st.session_state.get("height", DEFAULT.height)


def set_size(width: int, height: int) -> None:
    """Put the controls of width and height to this size, in pixels: in a callback, before they are drawn."""
    take({"width": width, "height": height})


def _take() -> None:
    if (chosen := st.session_state[_KEY]) is not None:
        set_size(*chosen)


def _swap() -> None:
    width, height = _size()
    set_size(height, width)


def _label(size: tuple[int, int]) -> str:
    return f"{size[0]}×{size[1]}, {PRESETS[size]}"


def preset_controls() -> None:
    """Draw the choice of a common size, which shows what width and height stand at, and the swap of the two."""
    size = _size()
    # It follows the two numbers, from wherever they came.
    st.session_state[_KEY] = size if size in PRESETS else None
    with st.container(horizontal=True, vertical_alignment="bottom", gap="small"):
        st.selectbox(
            "Size",
            list(PRESETS),
            index=None,
            format_func=_label,
            key=_KEY,
            on_change=_take,
            placeholder="Another size",
            help="A common size, which sets width and height. Any other is typed below.",
        )
        st.button(
            "Swap",
            icon=":material/swap_horiz:",
            key="swap",
            on_click=_swap,
            width="content",
            help="Width becomes height, and height width. The peak stays almost the same.",
        )
