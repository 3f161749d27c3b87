"""Charts: data in, Altair out, with a sentence for those who cannot see it.

Altair is imported by the first chart, after the page's first paint.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import streamlit as st

from planner.units import gib, gib_value

if TYPE_CHECKING:
    from cache.predictions import Compared

# Colours that keep 3:1 contrast on both the light and the dark background.
BLUE, GREEN, ORANGE, VIOLET, ROSE, GREY, RED = (
    "#4c6ef5",
    "#12a37f",
    "#c9711f",
    "#8e7cc3",
    "#c2557f",
    "#7d879c",
    "#e03131",
)
# What a part of memory is coloured, the same in every chart.
PART_COLORS = {
    "Weights": BLUE,
    "Activations": GREEN,
    "+20 %": VIOLET,
    "Allocated": BLUE,
    "Tensors and workspace": GREEN,
    "Tensors": GREEN,
    "Workspace": ORANGE,
    "Allocator": VIOLET,
    "Context": ROSE,
}
BASIS_COLORS = {"formula": VIOLET, "dry-run": BLUE, "measured": GREEN}


# Altair checks each part of a chart against the whole of Vega-Lite's schema, which takes longer than all else that a
# change of a control does. Our charts do not change while the app runs: the tests check them.
VALIDATE = False


def altair() -> Any:
    """Altair, imported late. Any: its fluent methods come from decorators that the type checker cannot see through."""
    import altair

    # Its own look has sizes and colours that a page's theme has better.
    altair.theme.enable("none")
    if not VALIDATE:
        altair.utils.schemapi.disable_debug_mode()
    return altair


def draw(chart: Any, alt: str, rows: Mapping[str, Sequence[Mapping[str, Any]]] | None = None) -> None:
    """Put an Altair chart on the page, as wide as there is room, with `alt` for those who cannot see it.

    `rows` are the data of layers that have them by name: put in here, where Altair no longer copies them again and
    again.
    """
    spec = chart.to_dict(validate=VALIDATE)
    for layer in spec.get("layer", ()) if rows else ():
        if rows and layer["data"].get("name") in rows:
            layer["data"] = {"values": rows[layer["data"]["name"]]}
    st.vega_lite_chart(spec=spec, width="stretch", alt=alt)


def part_color(names: Sequence[str]) -> Any:
    """Parts by their colours, with a legend above that wraps on a phone."""
    alt = altair()
    scale = alt.Scale(domain=list(names), range=[PART_COLORS[name] for name in names])
    return alt.Color(
        "part:N", scale=scale, legend=alt.Legend(orient="top", title=None, labelLimit=200, columns=2 + len(names) % 2)
    )


def comparison_chart(by_basis: Mapping[str, Sequence[Compared]]) -> None:
    """What each basis predicted beside what was measured: a group of bars a line."""
    alt = altair()
    values, order, told = [], [], []
    for lines in zip(*by_basis.values(), strict=True):
        measured = lines[0].measured_bytes
        said = [(basis, line.predicted_bytes) for basis, line in zip(by_basis, lines, strict=True)]
        sizes = [(basis, size) for basis, size in (*said, ("measured", measured)) if size is not None]
        if measured is None or len(sizes) < 2:
            continue
        name = lines[0].name.replace(", allocated", "")
        order.append(name)
        told.append(f"{name}: " + ", ".join(f"{basis} {gib(size)}" for basis, size in sizes))
        values += [{"line": name, "what": basis, "GiB": gib_value(size), "size": gib(size)} for basis, size in sizes]
    bases = [*by_basis, "measured"]
    chart = (
        alt.Chart(alt.Data(values=values))
        .mark_bar(size=22 / len(bases), cornerRadiusEnd=2)
        .encode(
            y=alt.Y("line:N", sort=order, title=None, axis=alt.Axis(labelLimit=150, ticks=False, domain=False)),
            yOffset=alt.YOffset("what:N", sort=bases),
            x=alt.X("GiB:Q", title="GiB", axis=alt.Axis(tickCount=5)),
            color=alt.Color(
                "what:N",
                sort=bases,
                scale=alt.Scale(domain=bases, range=[BASIS_COLORS.get(basis, GREY) for basis in bases]),
                legend=alt.Legend(orient="top", title=None, columns=2),
            ),
            tooltip=[alt.Tooltip("line:N", title="peak"), alt.Tooltip("what:N"), alt.Tooltip("size:N")],
        )
        .properties(height=alt.Step(32 / len(bases)))
    )
    words = " and ".join(bases)
    draw(chart, alt=f"Bars of {words} memory. {'; '.join(told)}")
