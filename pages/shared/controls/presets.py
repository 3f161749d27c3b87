"""The control of common image sizes, and the button that swaps width and height."""

import streamlit as st

from pages.shared.frame.following import chosen_in, following_key
from pages.shared.frame.plan_state import take
from planner.request import DEFAULT

# Both sides of each are multiples of 8, which both tasks accept.
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
    """Set the controls of width and height, in pixels; for callbacks only."""
    take({"width": width, "height": height})


def _take() -> None:
    if (chosen := chosen_in(_KEY)) is not None:
        set_size(*chosen)


def _swap() -> None:
    width, height = _size()
    set_size(height, width)


def _label(size: tuple[int, int]) -> str:
    return f"{size[0]}×{size[1]}, {PRESETS[size]}"


def preset_controls() -> None:
    """Draw the choice of a common size and the button that swaps width and height."""
    size = _size()
    # The choice shows the size that width and height have, wherever they were set.
    shown = size if size in PRESETS else None
    sizes = list(PRESETS)
    with st.container(horizontal=True, vertical_alignment="bottom", gap="small"):
        st.selectbox(
            "Size",
            sizes,
            index=None if shown is None else sizes.index(shown),
            format_func=_label,
            key=following_key(_KEY, shown),
            on_change=_take,
            placeholder="Custom",
            help="Sets width and height to a common size. Type any other size below.",
        )
        st.button(
            "Swap",
            icon=":material/swap_horiz:",
            key="swap",
            on_click=_swap,
            width="content",
            help="Swaps width and height. The peak stays almost the same.",
        )
