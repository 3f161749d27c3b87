"""Charts: data in, Altair out, with a sentence for those who cannot see it.

Altair is imported by the first chart, after the page's first paint.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import streamlit as st

from planner.fit import Answer
from planner.formula import Breakdown
from planner.units import gib, gib_value

if TYPE_CHECKING:
    from cache.compare import Compared

# Colours that keep 3:1 contrast on both the light and the dark background.
WEIGHTS, ACTIVATIONS, OVERHEAD = "#4c6ef5", "#12a37f", "#8e7cc3"
CAPACITY_FITS, CAPACITY_MISSED = "#7d879c", "#e03131"
PREDICTED, MEASURED = "#8e7cc3", "#12a37f"


def _altair() -> Any:
    # Any: its fluent methods come from decorators that the type checker cannot see through.
    import altair

    return altair


def memory_chart(answers: Sequence[Answer], breakdown: Breakdown) -> None:
    """Base, activations and the 20 % of each card as one bar, and the card's capacity as a mark above all."""
    alt = _altair()
    parts = [
        ("Weights", breakdown.base_bytes),
        ("Activations", breakdown.activation_bytes),
        ("+20 %", breakdown.overhead_bytes),
    ]
    shown = [answer for answer in answers if answer.need_bytes is not None]
    bars = [
        {"card": answer.card.name, "part": name, "order": order, "GiB": gib_value(size), "size": gib(size)}
        for answer in shown
        for order, (name, size) in enumerate(parts)
    ]
    capacities = [
        {
            "card": answer.card.name,
            "GiB": gib_value(answer.card.usable_bytes),
            "label": f"{gib(answer.card.usable_bytes)} usable",
            "missed": answer.verdict == "no",
            "verdict": answer.verdict,
        }
        for answer in shown
    ]
    names = [answer.card.name for answer in shown]
    largest = max(max(gib_value(a.card.usable_bytes), gib_value(a.need_bytes or 0)) for a in shown)
    y = alt.Y("card:N", sort=names, title=None, axis=alt.Axis(labelLimit=140, ticks=False, domain=False))
    scale = alt.Scale(domain=[0, largest * 1.02], nice=False)
    x = alt.X("GiB:Q", title="GiB", scale=scale, axis=alt.Axis(tickCount=6))
    room = (
        alt.Chart(alt.Data(values=capacities))
        .mark_bar(size=26, color="#868e96", opacity=0.22, cornerRadiusEnd=3)
        .encode(y=y, x=x, tooltip=[alt.Tooltip("card:N"), alt.Tooltip("label:N", title="capacity")])
    )
    need = (
        alt.Chart(alt.Data(values=bars))
        .mark_bar(size=26)
        .encode(
            y=y,
            x=alt.X("GiB:Q", stack="zero", scale=scale, title="GiB"),
            color=alt.Color(
                "part:N",
                scale=alt.Scale(domain=[name for name, _ in parts], range=[WEIGHTS, ACTIVATIONS, OVERHEAD]),
                legend=alt.Legend(orient="top", title=None, labelLimit=200, columns=3),
            ),
            order=alt.Order("order:Q"),
            tooltip=[alt.Tooltip("card:N"), alt.Tooltip("part:N"), alt.Tooltip("size:N")],
        )
    )
    # Last, so that a bar longer than its card does not hide where the card ends.
    capacity = (
        alt.Chart(alt.Data(values=capacities))
        .mark_tick(thickness=4, size=38, opacity=1)
        .encode(
            y=y,
            x=x,
            color=alt.condition("datum.missed", alt.value(CAPACITY_MISSED), alt.value(CAPACITY_FITS)),
            tooltip=[alt.Tooltip("card:N"), alt.Tooltip("label:N", title="capacity"), alt.Tooltip("verdict:N")],
        )
    )
    told = "; ".join(
        f"{a.card.name}: needs {gib(a.need_bytes or 0)} of {gib(a.card.usable_bytes)}, {a.verdict}" for a in shown
    )
    chart = alt.layer(room, need, capacity).properties(height=alt.Step(52))
    st.altair_chart(chart, width="stretch", alt=f"Bars of the memory needed against each card's capacity. {told}")


def comparison_chart(lines: Sequence[Compared], basis: str) -> None:
    """Predicted beside measured bytes, a pair of bars a line."""
    alt = _altair()
    known = [line for line in lines if line.predicted_bytes is not None and line.measured_bytes is not None]
    values = [
        {"line": line.name.replace(", allocated", ""), "what": what, "GiB": gib_value(size), "size": gib(size)}
        for line in known
        for what, size in ((basis, line.predicted_bytes or 0), ("measured", line.measured_bytes or 0))
    ]
    order = [line.name.replace(", allocated", "") for line in known]
    chart = (
        alt.Chart(alt.Data(values=values))
        .mark_bar(size=11, cornerRadiusEnd=2)
        .encode(
            y=alt.Y("line:N", sort=order, title=None, axis=alt.Axis(labelLimit=150, ticks=False, domain=False)),
            yOffset=alt.YOffset("what:N", sort=[basis, "measured"]),
            x=alt.X("GiB:Q", title="GiB", axis=alt.Axis(tickCount=5)),
            color=alt.Color(
                "what:N",
                sort=[basis, "measured"],
                scale=alt.Scale(domain=[basis, "measured"], range=[PREDICTED, MEASURED]),
                legend=alt.Legend(orient="top", title=None),
            ),
            tooltip=[alt.Tooltip("line:N", title="peak"), alt.Tooltip("what:N"), alt.Tooltip("size:N")],
        )
        .properties(height=alt.Step(16))
    )
    told = "; ".join(
        f"{line.name}: {gib(line.predicted_bytes or 0)}, {gib(line.measured_bytes or 0)}" for line in known
    )
    st.altair_chart(chart, width="stretch", alt=f"Bars of {basis} and measured memory. {told}")
