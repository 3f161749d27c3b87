"""The control that takes width and height from an image file."""

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
    return fitted(*read_size(uploaded, uploaded.name))


def _take() -> None:
    uploaded = st.session_state[_KEY]
    if uploaded is None:
        return
    try:
        size = _fitted(uploaded)
    except InvalidArgument:
        # `image_control` shows this error beside the file.
        return
    set_size(size.width, size.height)


def image_control() -> None:
    """Draw the choice of an image, whose size sets width and height.

    The file is read in memory and never stored.
    """
    uploaded = st.file_uploader(
        "Image",
        TYPES,
        key=_KEY,
        on_change=_take,
        help="PNG, JPEG or WebP. Only width and height are read; the image is never decoded or stored.",
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
