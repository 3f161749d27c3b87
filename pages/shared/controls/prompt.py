"""The control that counts the CLIP tokens of a prompt."""

import streamlit as st

from cache.tokens import count_tokens, prompt_tokens
from planner.request import MAX_PROMPT_TOKENS

_KEY = "prompt"
# The model reads far less, and cache.tokens counts no further.
_MAX_CHARACTERS = MAX_PROMPT_TOKENS * 64


def _take() -> None:
    st.session_state["prompt_tokens"] = prompt_tokens(st.session_state[_KEY])


def prompt_control() -> None:
    """Draw the prompt, whose length sets the number of prompt tokens.

    The text is neither stored nor put into the address.
    """
    text = st.text_area(
        "Prompt",
        key=_KEY,
        max_chars=_MAX_CHARACTERS,
        height=68,
        on_change=_take,
        placeholder="a photo of a cat",
        help="Sets the prompt tokens above, counted with CLIP's own vocabulary, start and end included. The text is "
        "not stored and not part of the address.",
    )
    if not text:
        return
    counted = count_tokens(text)
    cut = f", cut at {MAX_PROMPT_TOKENS}" if counted > MAX_PROMPT_TOKENS else ""
    st.caption(
        f"{counted} tokens{cut}. The pipeline pads every prompt to {MAX_PROMPT_TOKENS} tokens, so its length does not "
        "change the memory; only the formula has a term for it."
    )
