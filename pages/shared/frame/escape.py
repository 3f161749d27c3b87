"""Text of others, shown as text."""

import re


def plain(text: str) -> str:
    """The text with everything escaped that Streamlit's Markdown would take for a link, a picture or a directive."""
    return re.sub(r"([\\`*_\[\]()<>$~:!#|])", r"\\\1", text)


def code(value: object) -> str:
    """The value as code; a backtick in it would end it early."""
    return "`" + str(value).replace("`", "'") + "`"


def sentence(text: str) -> str:
    """An error's message as a sentence on a page."""
    return f"{plain(text[:1].upper() + text[1:])}."
