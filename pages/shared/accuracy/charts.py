"""Draw predictions against measurements."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import median
from typing import Any

import streamlit as st

from pages.shared.frame.charts import BLUE, GREEN, GREY, ORANGE, VIOLET, altair, data, draw, sized
from planner.accuracy.grading import Graded
from planner.components import STAGE_NAMES, STAGES
from planner.units import gib, gib_value

# Each basis has a colour and a shape of its own, so that nobody depends on the colour.
_LOOKS = {"Calibrated": (ORANGE, "diamond"), "Dry run": (BLUE, "circle"), "Formula": (VIOLET, "triangle-up")}
_TICKS = [0.01, 0.1, 0.25, 0.5, 1, 2, 4, 8, 16, 32, 64, 128]


def _basis_encodings(alt: Any) -> dict[str, Any]:
    names = list(_LOOKS)
    legend = alt.Legend(orient="top", title=None)
    colors, shapes = zip(*_LOOKS.values(), strict=True)
    return {
        "color": alt.Color("basis:N", scale=alt.Scale(domain=names, range=list(colors)), legend=legend),
        "shape": alt.Shape("basis:N", scale=alt.Scale(domain=names, range=list(shapes)), legend=legend),
    }


def _sizes(alt: Any, values: Sequence[float]) -> Any:
    low, high = 0.9 * min(values), 1.1 * max(values)
    return alt.Scale(type="log", domain=[low, high], nice=False)


def _axis(alt: Any, title: str) -> Any:
    return alt.Axis(title=title, values=_TICKS, format="~g", grid=True)


def scatter_chart(points: Sequence[Mapping[str, Any]], intervals: Sequence[Mapping[str, Any]]) -> None:
    """Draw predicted against measured peaks in GiB, with intervals as vertical lines."""
    alt = altair()
    measured = [point["measured"] for point in points]
    ends = [end for one in intervals for end in (one["low"], one["high"])]
    predicted = [*(point["predicted"] for point in points), *(end for end in ends if end > 0)]
    x = alt.X("measured:Q", scale=_sizes(alt, measured), axis=_axis(alt, "measured, GiB"))
    scale_y = _sizes(alt, predicted)
    y = alt.Y("predicted:Q", scale=scale_y, axis=_axis(alt, "predicted, GiB"))
    line = [{"measured": end, "predicted": end} for end in (0.9 * min(measured), 1.1 * max(measured))]
    identity = data(line).mark_line(color=GREY, strokeDash=[4, 4]).encode(x=x, y=y)
    held = (
        data(intervals)
        .mark_rule(color=ORANGE, opacity=0.45, strokeWidth=3)
        .encode(x=x, y=alt.Y("low:Q", scale=scale_y), y2="high:Q")
    )
    dots = (
        data(points)
        .mark_point(size=60, filled=True, opacity=0.75)
        .encode(
            x=x,
            y=y,
            **_basis_encodings(alt),
            tooltip=[alt.Tooltip("run:N"), alt.Tooltip("basis:N"), alt.Tooltip("sizes:N", title="predicted")],
        )
    )
    chart = alt.layer(identity, held, dots).properties(height=360)
    draw(
        chart,
        alt=f"Predicted against measured peaks of {len(intervals)} runs; on the dashed line they are equal. "
        f"{_words(points)}",
    )
    st.caption("On the dashed line, predicted and measured are equal. Vertical lines are calibrated intervals.")


def residual_chart(points: Sequence[Mapping[str, Any]]) -> None:
    """Draw the error of each prediction, in per cent, over the measured peak."""
    alt = altair()
    measured = [point["measured"] for point in points]
    x = alt.X("measured:Q", scale=_sizes(alt, measured), axis=_axis(alt, "measured, GiB"))
    most = max(1.0, *(abs(point["off"]) for point in points))
    scale = alt.Scale(type="symlog", constant=0.1, domain=[-1.3 * most, 1.3 * most], nice=False)
    ticks = [sign * size for size in (1, 10, 100) if size <= 1.3 * most for sign in (-1, 1)]
    signed = "(datum.value > 0 ? '+' : datum.value < 0 ? '\u2212' : '') + abs(datum.value)"
    axis = alt.Axis(title="off by, %", values=[0, *ticks], labelExpr=signed, labelOverlap=False)
    y = alt.Y("off:Q", scale=scale, axis=axis)
    # Both layers need the same axis, because Vega merges different ones into an axis of its own.
    zero = data([{"off": 0}]).mark_rule(color=GREY, strokeDash=[4, 4]).encode(y=y)
    dots = (
        data(points)
        .mark_point(size=60, filled=True, opacity=0.75)
        .encode(
            x=x,
            y=y,
            **{name: of.legend(None) for name, of in _basis_encodings(alt).items()},
            tooltip=[
                alt.Tooltip("run:N"),
                alt.Tooltip("basis:N"),
                alt.Tooltip("off:Q", format="+.3f", title="off by, %"),
            ],
        )
    )
    chart = alt.layer(zero, dots).properties(height=220)
    draw(chart, alt=f"How far each prediction is off, in per cent. {_words(points)}")
    st.caption("How far off each prediction was. Below the dashed line it was too low. The scale is finer near zero.")


def _words(points: Sequence[Mapping[str, Any]]) -> str:
    parts = []
    for basis in _LOOKS:
        off = [abs(point["off"]) for point in points if point["basis"] == basis]
        parts.append(f"{basis}: {median(off):.2f} % off in the median, {max(off):.1f} % at worst")
    return "; ".join(parts) + "."


def stages_chart(one: Graded) -> None:
    """Draw the measured, dry-run and calibrated allocated peak of each stage of one run."""
    alt = altair()
    names = ["measured", "Dry run", "Calibrated"]
    colors = [GREEN, BLUE, ORANGE]
    shown = [stage for stage in STAGES if stage in one.stages]
    values = [
        {"stage": STAGE_NAMES[stage], "what": name, "GiB": gib_value(size), "size": gib(size)}
        for stage in shown
        for name, size in zip(names, one.stages[stage], strict=True)
    ]
    chart = (
        data(values)
        .mark_bar(cornerRadiusEnd=2)
        .encode(
            y=alt.Y("stage:N", sort=[STAGE_NAMES[stage] for stage in shown], title=None, axis=alt.Axis(labelLimit=150)),
            yOffset=alt.YOffset("what:N", sort=names),
            x=alt.X("GiB:Q", title="GiB"),
            color=alt.Color(
                "what:N",
                sort=names,
                scale=alt.Scale(domain=names, range=colors),
                legend=alt.Legend(orient="top", title=None),
            ),
            tooltip=[alt.Tooltip("stage:N"), alt.Tooltip("what:N"), alt.Tooltip("size:N")],
        )
    )
    words = "; ".join(f"{STAGE_NAMES[stage]}: {', '.join(gib(size) for size in one.stages[stage])}" for stage in shown)
    draw(sized(chart, 46 * len(shown)), alt=f"Measured, dry run and calibrated peak of each stage. {words}")
