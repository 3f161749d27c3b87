"""Test that charts' colours stand out from both backgrounds, and texts from what is behind them."""

import tomllib

import pytest

from pages.shared.frame import charts, tables
from pages.shared.plan.map_table import _FILLS
from tests.conftest import ROOT

THEMES = tomllib.loads((ROOT / ".streamlit/config.toml").read_text())["theme"]
MARKS = {*charts.PART_COLORS.values(), *charts.BASIS_COLORS.values(), *charts.SERIES_COLORS, charts.GREY, charts.RED}


def luminance(color: str) -> float:
    """Return the relative luminance of ``#rrggbb``, 0 to 1, by WCAG 2."""
    parts = (int(color[at : at + 2], 16) / 255 for at in (1, 3, 5))
    red, green, blue = (part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


def contrast(one: str, other: str) -> float:
    low, high = sorted((luminance(one), luminance(other)))
    return (high + 0.05) / (low + 0.05)


def test_contrast_is_that_of_wcag():
    assert contrast("#ffffff", "#000000") == pytest.approx(21)
    assert contrast("#777777", "#ffffff") == pytest.approx(4.48, abs=0.01)


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_marks_stand_out_from_the_page(theme):
    background = THEMES[theme]["backgroundColor"]
    faint = {color: contrast(color, background) for color in MARKS if contrast(color, background) < 3}
    assert faint == {}


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_texts_can_be_read(theme):
    colors = THEMES[theme]
    for behind in (colors["backgroundColor"], colors["secondaryBackgroundColor"]):
        for text in (colors["textColor"], colors["primaryColor"], colors["codeTextColor"]):
            assert contrast(text, behind) >= 4.5
    assert contrast(tables.SOFT_TEXT[theme == "dark"], colors["backgroundColor"]) >= 4.5


def test_white_text_can_be_read():
    style = (ROOT / "pages/shared/frame/style.css").read_text()
    behind = THEMES["light"]["primaryColor"]
    assert f"background-color: {behind}" in style
    assert all(contrast("#ffffff", fill) >= 4.5 for fill in (behind, *_FILLS.values()))
