"""Draw Altair charts on a page, each with a description for people who cannot see it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import altair as imported
import streamlit as st

from cache.predictions import Compared
from planner.units import gib, gib_value

# Each colour has a contrast of at least 3:1 to the light and to the dark background.
BLUE, GREEN, ORANGE, VIOLET, ROSE, GREY, RED = (
    "#4c6ef5",
    "#12a37f",
    "#c9711f",
    "#8e7cc3",
    "#c2557f",
    "#7d879c",
    "#e03131",
)
# The text colours of a report's picture; a page uses those of its theme.
INK, SOFT = "#1b2130", "#5b6478"
# A part of memory has the same colour in every chart.
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
BASIS_COLORS = {"formula": VIOLET, "dry-run": BLUE, "calibrated": ORANGE, "measured": GREEN}
# Runs that are compared, and releases of a library, have colours that mean nothing else in any chart.
SERIES_COLORS = ("#6b7a99", "#b94fc0", "#7f8b1f", "#1c94b8", "#9b6a4a", "#5a9e2f")


# Altair checks each part of a chart against the whole schema of Vega-Lite, which takes longer than all other work that
# a change of a control causes. The form of our charts does not change while the app runs, and the tests check it.
VALIDATE = False


class Look(NamedTuple):
    """The sizes of a chart in pixels, and the colour of its neutral marks."""

    row: int
    bar: int
    names_above: bool
    height: int
    ink: str


PAGE = Look(row=66, bar=26, names_above=True, height=270, ink=GREY)
PICTURE = Look(row=30, bar=18, names_above=False, height=230, ink=SOFT)


def altair() -> Any:
    """Return Altair, set up without its own look and without validation.

    Any: the type checker cannot see through the decorators that make its fluent methods.
    """
    # The sizes and colours of a page's theme must win over those of Altair.
    imported.theme.enable("none")
    if not VALIDATE:
        imported.utils.schemapi.disable_debug_mode()
    return imported


def data(rows: Sequence[Mapping[str, Any]]) -> Any:
    """Return an Altair chart of these rows, without a mark."""
    return altair().Chart(altair().Data(values=list(rows)))


def spec_of(chart: Any, rows: Mapping[str, Sequence[Mapping[str, Any]]] | None = None) -> dict[str, Any]:
    """Return the Vega-Lite specification of an Altair chart, or of a chart that is written out as one.

    `rows` are the data of layers that name them. They are put in here because Altair would copy them many times.
    """
    if isinstance(chart, dict):
        if VALIDATE:
            imported.LayerChart.from_dict(chart, validate=True)
        return chart
    spec = chart.to_dict(validate=VALIDATE)
    for layer in spec.get("layer", ()) if rows else ():
        if rows and layer["data"].get("name") in rows:
            layer["data"] = {"values": rows[layer["data"]["name"]]}
    return spec


def draw(chart: Any, alt: str, rows: Mapping[str, Sequence[Mapping[str, Any]]] | None = None) -> None:
    """Draw a chart that `spec_of` takes on the page, with `alt` for people who cannot see it."""
    st.vega_lite_chart(spec=spec_of(chart, rows), width="stretch", alt=alt)


def sized(chart: Any, height: float) -> Any:
    """Return the chart with a plot of this height in pixels; axes and legend come on top."""
    # Vega warns if a height is given by rows and the width by the page.
    return chart.properties(height=height, autosize=altair().AutoSizeParams(type="fit-x", contains="padding"))


def sized_spec(spec: Mapping[str, Any], height: float) -> dict[str, Any]:
    """Return a specification that is written out, with a plot of this height in pixels, as `sized` does."""
    fit = {"type": "fit-x", "contains": "padding"}
    return {**spec, "$schema": imported.SCHEMA_URL, "height": height, "autosize": fit}


def gib_axis(end: float, channel: Any = None, ticks: int = 6) -> Any:
    """Return a channel of the field GiB from 0 to `end`, x unless another is given."""
    alt = altair()
    scale = alt.Scale(domain=[0, end], nice=False)
    return (channel or alt.X)(
        "GiB:Q", scale=scale, stack=None, axis=alt.Axis(title="GiB", titlePadding=4, tickCount=ticks)
    )


def part_color(names: Sequence[str]) -> Any:
    """Return the colours of memory's parts, with a legend above that wraps on a phone."""
    spec = part_color_spec(names)
    alt = altair()
    return alt.Color("part:N", scale=alt.Scale(**spec["scale"]), legend=alt.Legend(**spec["legend"]))


def part_color_spec(names: Sequence[str]) -> dict[str, Any]:
    """Return `part_color` as a part of a specification that is written out."""
    # Vega works the columns out in the browser, where it knows the width.
    columns = {"expr": f"width < 480 ? {2 + len(names) % 2} : {len(names)}"}
    legend = {"orient": "top", "offset": 6, "padding": 4, "title": None, "labelLimit": 200, "columns": columns}
    scale = {"domain": list(names), "range": [PART_COLORS[name] for name in names]}
    return {"field": "part", "type": "nominal", "scale": scale, "legend": legend}


def comparison_chart(by_basis: Mapping[str, Sequence[Compared]]) -> None:
    """Draw the peaks that each basis predicted beside the measured ones, as groups of bars."""
    alt = altair()
    values: list[dict[str, Any]] = []
    order, descriptions = [], []
    for lines in zip(*by_basis.values(), strict=True):
        measured = lines[0].measured_bytes
        predicted = [(basis, line.predicted_bytes) for basis, line in zip(by_basis, lines, strict=True)]
        sizes = [(basis, size) for basis, size in (*predicted, ("measured", measured)) if size is not None]
        if measured is None or len(sizes) < 2:
            continue
        name = lines[0].name.replace(", allocated", "")
        order.append(name)
        descriptions.append(f"{name}: " + ", ".join(f"{basis} {gib(size)}" for basis, size in sizes))
        values += [{"line": name, "what": basis, "GiB": gib_value(size), "size": gib(size)} for basis, size in sizes]
    bases = [*by_basis, "measured"]
    chart = (
        data(values)
        .mark_bar(size=22 / len(bases), cornerRadiusEnd=2)
        .encode(
            y=alt.Y("line:N", sort=order, title=None, axis=alt.Axis(labelLimit=150, ticks=False, domain=False)),
            yOffset=alt.YOffset("what:N", sort=bases),
            x=gib_axis(1.05 * max((value["GiB"] for value in values), default=1.0), ticks=5),
            color=alt.Color(
                "what:N",
                sort=bases,
                scale=alt.Scale(domain=bases, range=[BASIS_COLORS.get(basis, GREY) for basis in bases]),
                legend=alt.Legend(orient="top", title=None, columns=2),
            ),
            tooltip=[alt.Tooltip("line:N", title="peak"), alt.Tooltip("what:N"), alt.Tooltip("size:N")],
        )
    )
    words = " and ".join(bases)
    draw(sized(chart, 40 * len(order)), alt=f"Bars of {words} memory. {'; '.join(descriptions)}")
