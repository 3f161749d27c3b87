"""CLIP tokens of a prompt, counted with CLIP's own vocabulary and without a model."""

import importlib
from functools import cache
from typing import Any

from planner.request import MAX_PROMPT_TOKENS


@cache
def _tokenizer() -> Any:
    module: Any = importlib.import_module("instant_clip_tokenizer")
    return module.Tokenizer()


def count_tokens(prompt: str) -> int:
    """Tokens of the prompt as SD v1.5 sees it, start and end included; more than 77 means it will be cut."""
    # Text far beyond what the model reads is cut, so that a pasted book costs nothing.
    text = prompt[: MAX_PROMPT_TOKENS * 64]
    return len(_tokenizer().encode(text)) + 2


def prompt_tokens(prompt: str) -> int:
    """`count_tokens`, at most the 77 that the pipeline reads."""
    return min(count_tokens(prompt), MAX_PROMPT_TOKENS)
