"""The charts of a report's picture, as Vega-Lite in plain data: Altair would bring pandas along."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from pages.shared.frame.charts import BLUE, GREY, ORANGE, PART_COLORS, RED, VIOLET
from pages.shared.plan.timeline_chart import is_far, stage_name
from planner.answer import Answer
from planner.units import gib, gib_value

if TYPE_CHECKING:
    from planner.replay.timeline import Timeline

Spec = dict[str, Any]
# One card's answer and what its need is made of, in (name, bytes).
Row = tuple[Answer, Sequence[tuple[str, int]]]

INK, SOFT = "#1b2130", "#5b6478"


def memory_spec(rows: Sequence[Row], width: int) -> Spec:
    """Each need as a bar of its parts, capacity behind it and as a mark, and the least in which it runs."""
    names = [answer.card.name for answer, _ in rows]
    parts = list(dict.fromkeys(name for _, pieces in rows for name, _ in pieces))
    top = max(gib_value(max(a.card.usable_bytes, a.need_bytes or 0, a.worst_need_bytes or 0)) for a, _ in rows)
    y = {"field": "card", "type": "nominal", "sort": names, "title": None}
    y["axis"] = {"ticks": False, "domain": False, "labelLimit": 200}
    x = {"field": "GiB", "type": "quantitative", "title": "GiB", "scale": {"domain": [0, top * 1.02], "nice": False}}
    bars = [
        {"card": answer.card.name, "part": name, "order": place, "GiB": gib_value(size)}
        for answer, pieces in rows
        for place, (name, size) in enumerate(pieces)
    ]
    ends = [
        {"card": a.card.name, "GiB": gib_value(a.card.usable_bytes), "over": (a.headroom_bytes or 0) < 0}
        for a, _ in rows
    ]
    least = [
        {"card": a.card.name, "GiB": gib_value(a.minimum_bytes)}
        for a, _ in rows
        if a.minimum_bytes is not None and a.minimum_bytes != a.need_bytes
    ]
    color = {
        "field": "part",
        "type": "nominal",
        "scale": {"domain": parts, "range": [PART_COLORS[name] for name in parts]},
        "legend": {"orient": "top", "title": None, "labelLimit": 240, "symbolType": "square"},
    }
    past = {"condition": {"test": "datum.over", "value": RED}, "value": GREY}
    return {
        "width": width,
        "height": {"step": 30},
        "layer": [
            {
                "data": {"values": ends},
                "mark": {"type": "bar", "size": 18, "color": "#868e96", "opacity": 0.22},
                "encoding": {"y": y, "x": x},
            },
            {
                "data": {"values": bars},
                "mark": {"type": "bar", "size": 18},
                "encoding": {"y": y, "x": x | {"stack": "zero"}, "color": color, "order": {"field": "order"}},
            },
            {
                "data": {"values": ends},
                "mark": {"type": "tick", "thickness": 3, "size": 26, "opacity": 1},
                "encoding": {"y": y, "x": x, "color": past},
            },
            {
                "data": {"values": least},
                "mark": {"type": "point", "shape": "triangle-up", "size": 45, "filled": True, "opacity": 1}
                | {"color": INK, "yOffset": 12},
                "encoding": {"y": y, "x": x},
            },
        ],
    }


def over_time_spec(timeline: Timeline, capacity_bytes: int, width: int) -> Spec:
    """Allocated and reserved from event to event over the stages, the capacity where it is near, and the peak."""
    run, is_near = timeline.run, not is_far(timeline, capacity_bytes)
    top = gib_value(max(run.peak_reserved_bytes, capacity_bytes * is_near)) * 1.12
    x = {
        "field": "event",
        "type": "quantitative",
        "scale": {"domain": [0, timeline.events], "nice": False},
        "axis": None,
    }
    y = {"type": "quantitative", "title": "GiB", "scale": {"domain": [0, top], "nice": False}, "stack": None}
    y["axis"] = {"tickCount": 5}
    bands = [
        {"event": b.begin, "end": b.end, "middle": (b.begin + b.end) / 2, "stage": stage_name(b.stage), "shade": i % 2}
        for i, b in enumerate(timeline.bands)
    ]
    curve = [
        {"event": p.event, "allocated": gib_value(p.allocated_bytes), "reserved": gib_value(p.reserved_bytes)}
        for p in timeline.points
    ]
    curve.append(curve[-1] | {"event": timeline.events})
    color = {
        "field": "series",
        "type": "nominal",
        "scale": {"domain": ["allocated", "reserved"], "range": [BLUE, VIOLET]},
        "legend": {"orient": "bottom", "title": None, "symbolType": "square", "symbolOpacity": 1},
    }
    shade = {"field": "shade", "type": "nominal", "scale": {"range": [0.05, 0.17]}, "legend": None}
    layers: list[Spec] = [
        {
            "data": {"values": bands},
            "mark": {"type": "rect", "color": "#868e96"},
            "encoding": {"x": x, "x2": {"field": "end"}, "opacity": shade},
        }
    ]
    for series, opacity in (("reserved", 0.35), ("allocated", 0.85)):
        layers.append(
            {
                "data": {"values": curve},
                "transform": [{"calculate": f"'{series}'", "as": "series"}],
                "mark": {"type": "area", "interpolate": "step-after", "opacity": opacity},
                "encoding": {"x": x, "y": y | {"field": series}, "color": color},
            }
        )
    # By turns in two rows: a narrow band's name is wider than the band.
    for row in (0, 1):
        layers.append(
            {
                "data": {"values": bands[row::2]},
                "mark": {"type": "text", "fontSize": 10, "color": SOFT, "y": -8 - 12 * row},
                "encoding": {"x": x | {"field": "middle"}, "text": {"field": "stage"}},
            }
        )
    if is_near:
        failed = run.outcome != "ok"
        end, words = RED if failed else SOFT, "out of memory at" if failed else "room for"
        line = {"values": [{"event": 0, "GiB": gib_value(capacity_bytes), "text": f"{words} {gib(capacity_bytes)}"}]}
        height = y | {"field": "GiB"}
        layers += [
            {
                "data": line,
                "mark": {"type": "rule", "color": end, "strokeWidth": 2, "strokeDash": [6, 3]},
                "encoding": {"y": height},
            },
            {
                "data": line,
                "mark": {"type": "text", "color": end, "align": "left", "dx": 4, "dy": -7, "fontWeight": "bold"},
                "encoding": {"x": x, "y": height, "text": {"field": "text"}},
            },
        ]
    peak = {"event": timeline.peak_event, "GiB": gib_value(run.peak_allocated_bytes)}
    layers.append(
        {
            "data": {"values": [peak]},
            "mark": {"type": "point", "shape": "diamond", "size": 110, "filled": True, "opacity": 1}
            | {"color": ORANGE, "stroke": "white", "strokeWidth": 1},
            "encoding": {"x": x, "y": y | {"field": "GiB"}},
        }
    )
    return {"width": width, "height": 230, "layer": layers}
