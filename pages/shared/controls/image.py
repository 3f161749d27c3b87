"""An image as people have it: a file, of which only the size counts."""

from __future__ import annotations

import streamlit as st
from streamlit.runtime.uploaded_file_manager import UploadedFile

from pages.shared.controls.image_size import TYPES, FittedSize, fitted, read_size
from pages.shared.controls.presets import set_size
from pages.shared.frame.escape import plain, sentence
from pages.shared.frame.uploads import upload_caption
from planner.errors import InvalidArgument

_KEY = "image"


def _fitted(uploaded: UploadedFile) -> FittedSize:
    return fitted(*read_size(uploaded.getvalue(), uploaded.name))


def _take() -> None:
    uploaded = st.session_state[_KEY]
    if uploaded is None:
        return
    try:
        size = _fitted(uploaded)
    except InvalidArgument:
        # Said where the file is shown.
        return
    set_size(size.width, size.height)


def image_control() -> None:
    """Draw the choice of an image; its size is read in memory and sets width and height, and nothing is kept."""
    uploaded = st.file_uploader(
        "Image",
        TYPES,
        key=_KEY,
        on_change=_take,
        help="PNG, JPEG or WebP. Its header is read for width and height; the picture is never decoded nor stored.",
    )
    if uploaded is None:
        upload_caption("PNG, JPEG or WebP")
        return
    try:
        size = _fitted(uploaded)
    except InvalidArgument as error:
        st.error(sentence(str(error)), icon=":material/error:")
        return
    width, height = size.original
    why = f", planned as {size.width}×{size.height}: {size.why}" if size.why else ""
    st.caption(f"{plain(uploaded.name)} is {width}×{height}{why}.")
