"""Say what can be uploaded, because Streamlit does not say why it refuses a file."""

import streamlit as st


def limit_mb() -> int:
    """Return the largest upload in units of 2^20 bytes, which .streamlit/config.toml sets."""
    # The server checks only this option, and not the `max_upload_size` of an uploader.
    return st.get_option("server.maxUploadSize")


def upload_caption(kind: str, otherwise: str = "") -> None:
    """Draw a caption with the kind and size of files that are accepted.

    Streamlit shows the name of a refused file in red and gives no reason.
    """
    st.caption(f"{kind} of up to {limit_mb()} MB. Other files turn red and are not used{otherwise}.")
