"""Count the CLIP tokens of a prompt with CLIP's own vocabulary and without a model."""

import importlib
from functools import cache
from typing import Any

from planner.request import MAX_PROMPT_TOKENS


@cache
def _tokenizer() -> Any:
    module: Any = importlib.import_module("instant_clip_tokenizer")
    return module.Tokenizer()


def count_tokens(prompt: str) -> int:
    """Count the tokens of a prompt, start and end included; the pipeline reads at most 77."""
    # Text far beyond the limit of the model is cut first, so that a very long text costs no time.
    text = prompt[: MAX_PROMPT_TOKENS * 64]
    return len(_tokenizer().encode(text)) + 2


def prompt_tokens(prompt: str) -> int:
    """Count the tokens that the pipeline reads, at most 77."""
    return min(count_tokens(prompt), MAX_PROMPT_TOKENS)
