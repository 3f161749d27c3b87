"""What may be uploaded, in words: the server's limit is the only one, and Streamlit keeps its reasons to itself."""

import streamlit as st


def limit_mb() -> int:
    """The largest file that the server takes, in megabytes of 2^20 bytes; .streamlit/config.toml sets it."""
    # An uploader's own `max_upload_size` would be a promise and no limit: the server looks at this option alone.
    return st.get_option("server.maxUploadSize")


def upload_caption(kind: str, otherwise: str = "") -> None:
    """Say what is taken; of a file that is not, Streamlit draws the name in red and no word of why."""
    st.caption(f"{kind} of up to {limit_mb()} MB. Any other file turns red and is not taken{otherwise}.")
