"""Prepare text for pages: escape the text of others, and set numbers as people read them."""

import re

_NO_BREAK_SPACE = "\N{NO-BREAK SPACE}"


def plain(text: str) -> str:
    """Escape what Streamlit's Markdown would read as a link, an image or a directive."""
    return re.sub(r"([\\`*_\[\]()<>$~:!#|])", r"\\\1", text)


def code(value: object) -> str:
    """Write the value as code, without backticks, which would end it early."""
    return "`" + str(value).replace("`", "'") + "`"


def sentence(text: str) -> str:
    """Write an error's message as a sentence on a page."""
    return f"{plain(text[:1].upper() + text[1:])}."


def typeset(text: str) -> str:
    """Write negative numbers with a minus sign, and a no-break space before "%".

    Hyphens within words and dates, and before options, stay.

    >>> typeset("-3.1% in the median of 2026-11-24, within 0.25 %").replace("\N{NO-BREAK SPACE}", "_")
    '−3.1_% in the median of 2026-11-24, within 0.25_%'
    """
    signed = re.sub(r"(?<![\w.-])-(?=\d)", "−", text)
    return re.sub(r"(?<=\d) ?%", f"{_NO_BREAK_SPACE}%", signed)
