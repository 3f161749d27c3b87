"""Draw tables whose signed numbers have a minus sign, not a hyphen."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import pandas as pd
import streamlit as st
from pandas import DataFrame
from pandas.io.formats.style import Styler

from planner.units import GIB, signed_gib

MISSING = "–"
# Text that matters less, by whether the page is dark. Each has a contrast of at least 4.5:1 to its background.
SOFT_TEXT = {False: "#667085", True: "#98a2b3"}


def is_dark() -> bool:
    """Return whether the page is drawn in its dark theme."""
    return st.context.theme.type == "dark"


def signed(value: float, digits: int) -> str:
    """Write a number of per cent with its sign.

    >>> signed(-3.14159, 2), signed(-0.001, 1)
    ('\N{MINUS SIGN}3.14 %', '0.0 %')
    """
    # Adding zero turns -0.0 into 0.0.
    shown = round(value, digits) + 0.0
    return (f"{shown:+.{digits}f} %" if shown else f"{0:.{digits}f} %").replace("-", "\N{MINUS SIGN}")


def with_signs(rows: DataFrame | Sequence[Mapping[str, Any]], columns: Iterable[str], digits: int = 2) -> Styler:
    """Return a table that writes these columns of per cent with their signs.

    The columns keep their numbers, by which they are sorted: only their texts are replaced, because the formats of
    Streamlit write a hyphen for a minus. A format in the configuration of such a column would win over the texts.
    """
    frame = rows if isinstance(rows, DataFrame) else DataFrame(rows)
    found = [name for name in columns if name in frame.columns]
    styler = frame.style
    styler.format({name: lambda value: signed(value, digits) for name in found}, na_rep=MISSING, subset=found)
    return styler


def with_signed_gib(rows: Sequence[Mapping[str, Any]], columns: Iterable[str]) -> Styler:
    """Return a table that writes these columns of GiB with their signs.

    The columns keep their numbers, as in `with_signs`.
    """
    names = list(columns)
    styler = DataFrame(rows).style
    styler.format(lambda value: signed_gib(round(value * GIB)), na_rep=MISSING, subset=names)
    return styler


def draw_table(styler: Styler, **options: Any) -> Any:
    """Draw a styled table of any length; the options are those of `st.dataframe`."""
    cells = int(styler.data.size)
    with pd.option_context("styler.render.max_elements", max(cells, pd.get_option("styler.render.max_elements"))):
        return st.dataframe(styler, placeholder=MISSING, **options)
