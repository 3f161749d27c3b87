"""Draw predictions against measurements."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import median
from typing import Any

import streamlit as st

from pages.shared.frame.charts import BASIS_COLORS, GREY, altair, data, draw, gib_axis, sized
from planner.accuracy.grading import Graded
from planner.components import STAGE_NAMES, STAGES
from planner.units import gib, gib_value

DRY_RUN, CALIBRATED, FORMULA = "Dry run", "Calibrated", "Formula"
COLORS = {
    CALIBRATED: BASIS_COLORS["calibrated"],
    DRY_RUN: BASIS_COLORS["dry-run"],
    FORMULA: BASIS_COLORS["formula"],
}
# Each basis has a shape and a size of its own, so that nobody depends on the colour. The small diamond fits into the
# ring of the same run's dry run and covers none of it.
_SHAPES = {CALIBRATED: "diamond", DRY_RUN: "circle", FORMULA: "triangle-up"}
_SIZES = {CALIBRATED: 24, DRY_RUN: 130, FORMULA: 45}
_OCTAVES = [2.0**power for power in range(-6, 9)]
# A scale from one number to less than this multiple of it is linear, because few powers of two would be on it.
_FEW_OCTAVES = 6
# Room for the labels of a vertical axis, the same in all charts so that they stand in line.
_LABELS = {"minExtent": 36, "maxExtent": 36, "titlePadding": 4}


def _scale_and_axis(alt: Any, values: Sequence[float], title: str, **options: Any) -> dict[str, Any]:
    """Return the scale and the axis of sizes in GiB, with ticks at equal distances."""
    low, high = 0.93 * min(values), 1.07 * max(values)
    if high / low < _FEW_OCTAVES:
        scale, ticks = alt.Scale(domain=[low, high], zero=False, nice=False), {"tickCount": 6}
    else:
        scale = alt.Scale(type="log", base=2, domain=[low, high], nice=False)
        ticks = {"values": [tick for tick in _OCTAVES if low <= tick <= high], "format": "~g"}
    return {"scale": scale, "axis": alt.Axis(title=title, grid=True, **ticks, **options)}


def _marks(points: Sequence[Mapping[str, Any]], basis: str) -> Any:
    """Return the marks of one basis, without their places."""
    shown = [point for point in points if point["basis"] == basis]
    return data(shown).mark_point(
        shape=_SHAPES[basis], size=_SIZES[basis], filled=False, opacity=1, color=COLORS[basis], strokeWidth=1.5
    )


def _looks(alt: Any, bases: Sequence[str]) -> dict[str, Any]:
    """Return the colours and shapes of these bases, with one legend."""
    legend = alt.Legend(orient="top", title=None, offset=6, padding=4, symbolSize=70, symbolStrokeWidth=1.5)
    colors, shapes = [COLORS[basis] for basis in bases], [_SHAPES[basis] for basis in bases]
    return {
        "color": alt.Color("basis:N", scale=alt.Scale(domain=list(bases), range=colors), legend=legend),
        "shape": alt.Shape("basis:N", scale=alt.Scale(domain=list(bases), range=shapes), legend=legend),
    }


def _placed(alt: Any, points: Sequence[Mapping[str, Any]], bases: Sequence[str], x: Any, y: Any) -> list[Any]:
    """Return a layer for each basis, the later ones on top, with their tooltips and a legend."""
    tooltip = [
        alt.Tooltip("run:N"),
        alt.Tooltip("basis:N"),
        alt.Tooltip("sizes:N", title="predicted"),
        alt.Tooltip("off_words:N", title="off by"),
    ]
    look = _looks(alt, bases)
    return [_marks(points, basis).encode(x=x, y=y, tooltip=tooltip, **look) for basis in bases]


def scatter_chart(points: Sequence[Mapping[str, Any]], intervals: Sequence[Mapping[str, Any]]) -> None:
    """Draw predicted against measured peaks in GiB, with intervals as vertical lines.

    The formula is left out: its predictions are so low that the axis would have no room for the others.
    """
    alt = altair()
    measured = [point["measured"] for point in points]
    ends = [end for one in intervals for end in (one["low"], one["high"])]
    predicted = [point["predicted"] for point in points if point["basis"] != FORMULA]
    predicted += [end for end in ends if end > 0]
    x = alt.X("measured:Q", **_scale_and_axis(alt, measured, "measured, GiB", titlePadding=4))
    on_y = _scale_and_axis(alt, predicted, "predicted, GiB", **_LABELS)
    y = alt.Y("predicted:Q", **on_y)
    both = (max(min(measured), min(predicted)), min(max(measured), max(predicted)))
    identity = (
        data([{"measured": end, "predicted": end} for end in both])
        .mark_line(color=GREY, strokeDash=[4, 4])
        .encode(x=x, y=y)
    )
    held = (
        data(intervals)
        .mark_rule(color=COLORS[CALIBRATED], strokeWidth=1.5)
        .encode(x=x, y=alt.Y("low:Q", **on_y), y2="high:Q")
    )
    chart = alt.layer(identity, held, *_placed(alt, points, (DRY_RUN, CALIBRATED), x, y))
    draw(
        sized(chart, 340),
        alt=f"Predicted against measured peaks of {len(intervals)} runs; on the dashed line they are equal. "
        f"{_words(points)}",
    )
    st.caption(
        "On the dashed line, predicted and measured are equal. Vertical lines are calibrated intervals. The published "
        "formula is far below and has a chart of its own."
    )


def _percent_axis(alt: Any, title: str, ticks: int) -> Any:
    signed = "(datum.value > 0 ? '+' : datum.value < 0 ? '\u2212' : '') + abs(datum.value)"
    return alt.Axis(title=title, tickCount=ticks, labelExpr=signed, grid=True, **_LABELS)


def residual_chart(points: Sequence[Mapping[str, Any]]) -> None:
    """Draw the error of each prediction, in per cent, over the measured peak.

    The formula has a chart of its own, whose axis stretches no other.
    """
    alt = altair()
    x = alt.X("measured:Q", **_scale_and_axis(alt, [point["measured"] for point in points], "measured, GiB"))
    for bases, height, ticks in (((DRY_RUN, CALIBRATED), 220, 7), ((FORMULA,), 110, 4)):
        shown = [point for point in points if point["basis"] in bases]
        off = [point["off"] for point in shown]
        # Errors of a few thousandths would fill the plot and look large.
        around = max(0.08 * (max(off) - min(off)), 0.5)
        scale = alt.Scale(domain=[min(*off, 0.0) - around, max(*off, 0.0) + around], nice=False)
        y = alt.Y("off:Q", scale=scale, axis=_percent_axis(alt, "off by, %", ticks))
        zero = data([{"off": 0}]).mark_rule(color=GREY, strokeDash=[4, 4]).encode(y=y)
        chart = alt.layer(zero, *_placed(alt, shown, bases, x, y))
        draw(sized(chart, height), alt=f"How far each prediction is off, in per cent. {_words(shown)}")
    st.caption(
        "How far off each prediction was, the formula in the lower chart with a scale of its own. Below the dashed "
        "line the prediction was too low."
    )


def _words(points: Sequence[Mapping[str, Any]]) -> str:
    parts = []
    for basis in COLORS:
        if off := [abs(point["off"]) for point in points if point["basis"] == basis]:
            parts.append(f"{basis}: {median(off):.2f} % off in the median, {max(off):.1f} % at worst")
    return "; ".join(parts) + "."


def stages_chart(one: Graded) -> None:
    """Draw the measured, dry-run and calibrated allocated peak of each stage of one run."""
    alt = altair()
    names = ["Measured", DRY_RUN, CALIBRATED]
    colors = [BASIS_COLORS["measured"], COLORS[DRY_RUN], COLORS[CALIBRATED]]
    shown = [stage for stage in STAGES if stage in one.stages]
    values: list[dict[str, Any]] = [
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
            x=gib_axis(1.05 * max(value["GiB"] for value in values)),
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
