"""Measure the server time of changing one control on Plan, without a browser."""

import statistics
import sys
import time

from streamlit.testing.v1 import AppTest

from tests.conftest import ROOT

WIDTHS = range(1000, 1000 + 8 * 9, 8)

Row = tuple[str, str, str]


def repaint() -> list[Row]:
    """Return rows for ``make bench``: new sizes first, then one that is cached."""
    at = AppTest.from_file(str(ROOT / "streamlit_app.py"), default_timeout=60).run()
    taken = []
    for width in WIDTHS:
        began = time.perf_counter()
        at.number_input(key="width").set_value(width).run()
        taken.append(time.perf_counter() - began)
    again = []
    for _ in WIDTHS:
        began = time.perf_counter()
        at.run()
        again.append(time.perf_counter() - began)
    note = "torch was imported" if "torch" in sys.modules else "median of 9, torch not imported"
    return [
        ("Plan: a size never asked for, server time", f"{statistics.median(taken) * 1000:.0f} ms", note),
        ("Plan: the same again, server time", f"{statistics.median(again) * 1000:.0f} ms", "median of 9"),
    ]
