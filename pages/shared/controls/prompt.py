"""A prompt as people have it: text, of which only the number of CLIP tokens counts."""

import streamlit as st

from cache.tokens import count_tokens, prompt_tokens
from planner.request import MAX_PROMPT_TOKENS

_KEY = "prompt"
# Far beyond what the model reads; cache.tokens counts no further.
_MAX_CHARACTERS = MAX_PROMPT_TOKENS * 64


def _take() -> None:
    st.session_state["prompt_tokens"] = prompt_tokens(st.session_state[_KEY])


def prompt_control() -> None:
    """Draw the prompt; what is typed sets the control of its tokens, and is neither kept nor put into the address."""
    text = st.text_area(
        "Prompt",
        key=_KEY,
        max_chars=_MAX_CHARACTERS,
        height=68,
        on_change=_take,
        placeholder="a photo of a cat",
        help="Counted with CLIP's own vocabulary, start and end included. It sets the prompt tokens above, and stays "
        "out of the address.",
    )
    if not text:
        return
    counted = count_tokens(text)
    cut = f", cut at {MAX_PROMPT_TOKENS}" if counted > MAX_PROMPT_TOKENS else ""
    st.caption(
        f"{counted} tokens{cut}. The pipeline pads every prompt to {MAX_PROMPT_TOKENS}, so its length moves no "
        "memory; only the formula has a term for it."
    )
