"""Draw memory over the dry run, on the page and in a report's picture, and its peak by parts."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from pages.shared.frame.charts import (
    BLUE,
    ORANGE,
    PAGE,
    RED,
    VIOLET,
    Look,
    altair,
    data,
    draw,
    gib_axis,
    part_color,
    sized,
)
from pages.shared.plan.memory import PartRow
from planner.components import STAGE_NAMES
from planner.replay.timeline import Timeline
from planner.units import gib, gib_value

# A capacity of more than this many times the peak would flatten the curve, so a sentence gives it instead.
FAR = 2.5
# A band of less than this share of the events has its name only where it is the first of its stage.
NAMED_SHARE = 0.02


def stage_name(stage: str) -> str:
    """Return the label of a band."""
    return STAGE_NAMES.get(stage, "Loading")


def is_far(timeline: Timeline, capacity_bytes: int) -> bool:
    """Return whether the capacity is too far above the run to be drawn."""
    return capacity_bytes > FAR * timeline.run.peak_reserved_bytes


def timeline_chart(timeline: Timeline, gpu: str, capacity_bytes: int) -> None:
    """Draw memory over the dry run on the page."""
    run = timeline.run
    peak = f"Peak {gib(run.peak_allocated_bytes)} allocated, {gib(run.peak_reserved_bytes)} reserved"
    words = f"{peak}, of {gib(capacity_bytes)}; {'out of memory' if run.outcome != 'ok' else 'it runs to the end'}."
    chart = memory_over_time(timeline, capacity_bytes)
    draw(chart, alt=f"Memory over the dry run on {gpu}. {words}", rows=curve_rows(timeline))


def curve_rows(timeline: Timeline) -> dict[str, list[dict[str, Any]]]:
    """Return the rows that `memory_over_time` draws, by the name of their data."""
    ends = [point.event for point in timeline.points[1:]] + [timeline.events]
    stretches = [
        {
            "event": point.event,
            "end": end,
            "stage": stage_name(point.stage),
            "allocated": gib_value(point.allocated_bytes),
            "reserved": gib_value(point.reserved_bytes),
            "allocated ": gib(point.allocated_bytes),
            "reserved ": gib(point.reserved_bytes),
        }
        for point, end in zip(timeline.points, ends, strict=True)
    ]
    # A step lasts until the next one, and the last step until the end.
    return {"curve": [*stretches, stretches[-1] | {"event": timeline.events}], "stretches": stretches}


def memory_over_time(timeline: Timeline, capacity_bytes: int, look: Look = PAGE) -> Any:
    """Return an Altair chart of allocated and reserved memory over the stages.

    The peak and the capacity are marked, unless the capacity `is_far`. The curve names its rows: `curve_rows`.
    """
    alt = altair()
    run, is_near = timeline.run, not is_far(timeline, capacity_bytes)
    scale = alt.Scale(domain=[0, timeline.events], nice=False)
    x = alt.X("event:Q", scale=scale, axis=_stage_axis(timeline))
    y = gib_axis(1.14 * gib_value(max(run.peak_reserved_bytes, capacity_bytes * is_near)), alt.Y, ticks=5)
    layers = [*_bands(timeline, x), *_curves(x, y)]
    layers += _capacity(capacity_bytes, x, y, look, is_reached=run.outcome != "ok") if is_near else []
    layers += _peak(timeline, x, y)
    return sized(alt.layer(*layers), look.height)


def _stage_axis(timeline: Timeline) -> Any:
    """Return an axis with the stages' names above their bands, within the chart's edges."""
    # A ControlNet's calls and the UNet's alternate. Those that are not played in full have no room for a name, and the
    # others have it already.
    named = [
        band
        for index, band in enumerate(timeline.bands)
        if band.end - band.begin >= NAMED_SHARE * timeline.events
        or all(band.stage != other.stage for other in timeline.bands[:index])
    ]
    names = {(band.begin + band.end) // 2: stage_name(band.stage) for band in named}
    # Names alternate between two rows, because the name of a narrow band is wider than the band.
    upper = {"test": f"indexof({list(names)}, datum.value) % 2 == 0", "value": 15}
    at_end = {"test": f"datum.value > {0.9 * timeline.events}", "value": "right"}
    at_start = {"test": f"datum.value < {0.1 * timeline.events}", "value": "left"}
    return altair().Axis(
        orient="top",
        values=list(names),
        labelExpr=f"{json.dumps(names)}[datum.value]",
        labelPadding={"condition": upper, "value": 3},
        labelAlign={"condition": [at_end, at_start], "value": "center"},
        labelOverlap=False,
        labelLimit=120,
        labelFontSize=10,
        labelFlush=False,
        grid=False,
        ticks=False,
        domain=False,
        title=None,
    )


def _bands(timeline: Timeline, x: Any) -> list[Any]:
    alt = altair()
    shades = (0.05, 0.17)
    rows = [{"event": b.begin, "end": b.end, "shade": shades[i % 2]} for i, b in enumerate(timeline.bands)]
    opacity = alt.Opacity("shade:Q", scale=None)
    return [data(rows).mark_rect(color="#868e96").encode(x=x, x2="end:Q", opacity=opacity)]


def _curves(x: Any, y: Any) -> list[Any]:
    alt = altair()
    color = alt.Color(
        "series:N",
        scale=alt.Scale(domain=["allocated", "reserved"], range=[BLUE, VIOLET]),
        legend=alt.Legend(orient="bottom", offset=6, padding=4, title=None, symbolType="square", symbolOpacity=1),
    )
    areas = [
        alt.Chart(alt.NamedData(name="curve"))
        .transform_calculate(series=f"'{series}'", GiB=f"datum.{series}")
        .mark_area(interpolate="step-after", opacity=opacity, line=False)
        .encode(x=x, y=y, color=color)
        for series, opacity in (("reserved", 0.35), ("allocated", 0.85))
    ]
    # An area has only one tooltip, so invisible bars carry one for each step.
    tips = [alt.Tooltip("stage:N"), alt.Tooltip("allocated :N"), alt.Tooltip("reserved :N")]
    pointed = alt.Chart(alt.NamedData(name="stretches")).mark_rect(opacity=0).encode(x=x, x2="end:Q", tooltip=tips)
    return [*areas, pointed]


def _capacity(size_bytes: int, x: Any, y: Any, look: Look, *, is_reached: bool) -> list[Any]:
    words, color = ("out of memory at", RED) if is_reached else ("available:", look.ink)
    rows: list[Mapping[str, Any]] = [{"event": 0, "GiB": gib_value(size_bytes), "text": f"{words} {gib(size_bytes)}"}]
    line = data(rows).mark_rule(color=color, strokeWidth=2, strokeDash=[6, 3]).encode(y=y)
    text = data(rows).mark_text(color=color, align="left", dx=4, dy=-7, fontWeight="bold")
    return [line, text.encode(x=x, y=y, text="text:N")]


def _peak(timeline: Timeline, x: Any, y: Any) -> list[Any]:
    alt = altair()
    size = timeline.run.peak_allocated_bytes
    row = {
        "event": timeline.peak_event,
        "GiB": gib_value(size),
        "allocated": gib(size),
        "operation": timeline.operation,
        "module": timeline.module,
    }
    tips = [alt.Tooltip(f"{name}:N") for name in ("allocated", "operation", "module")]
    diamond = {"shape": "diamond", "size": 130, "filled": True, "opacity": 1, "color": ORANGE}
    return [data([row]).mark_point(**diamond, stroke="white", strokeWidth=1).encode(x=x, y=y, tooltip=tips)]


def peak_bar(rows: Sequence[PartRow]) -> None:
    """Draw the memory in use at the peak as one bar, with a piece for each kind of part."""
    alt = altair()
    kinds = list(dict.fromkeys(row.kind for row in rows))
    sizes = {kind: sum(row.size_bytes for row in rows if row.kind == kind) for kind in kinds}
    spans, begin = [], 0
    for kind, size in sizes.items():
        spans.append({"part": kind, "GiB": gib_value(begin), "end": gib_value(begin + size), "size": gib(size)})
        begin += size
    chart = (
        data(spans)
        .mark_bar(size=PAGE.bar, x2Offset=-1)
        .encode(
            x=gib_axis(1.02 * gib_value(begin)),
            x2="end:Q",
            color=part_color(kinds),
            tooltip=[alt.Tooltip("part:N"), alt.Tooltip("size:N")],
        )
    )
    words = ", ".join(f"{kind} {gib(size)}" for kind, size in sizes.items())
    draw(sized(chart, 34), alt=f"A bar of the memory in use at the peak: {words}")
