import pytest

from cache.tokens import count_tokens, prompt_tokens


@pytest.mark.parametrize(
    ("prompt", "tokens"),
    # Counts with start and end, as CLIP's vocabulary has these words whole.
    [("", 2), ("a cat", 4), ("a photo of a cat", 7), ("A PHOTO of a cat", 7), ("photograph", 3)],
)
def test_tokens_equal_clips(prompt, tokens):
    assert count_tokens(prompt) == tokens


def test_a_long_prompt_is_cut_to_77_tokens():
    assert count_tokens("cat " * 200) == 202
    assert prompt_tokens("cat " * 200) == 77


def test_a_very_long_prompt_is_counted():
    assert prompt_tokens("cat " * 1_000_000) == 77


def test_any_text_has_tokens():
    assert count_tokens("日本 🦄 \x00 é") > 2
