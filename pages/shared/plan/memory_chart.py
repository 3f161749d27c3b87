"""Draw what each GPU needs against what it has, on the page and in a report's picture."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import ceil
from typing import Any

import streamlit as st

from pages.shared.frame.charts import GREY, PAGE, RED, Look, draw, part_color_spec, sized_spec
from planner.answer import Answer
from planner.units import gib, gib_value

# One GPU's answer, and the parts of its need in (name, bytes), which add up to it.
Row = tuple[Answer, Sequence[tuple[str, int]]]

# The capacity's mark is higher than the bar by this many pixels.
_OVERHANG = 8
# The number of hatching strokes if the whole axis were beyond the capacity.
_STROKES = 88


def memory_chart(rows: Sequence[Row]) -> None:
    """Draw the bars of all answers that have a need, and a caption that explains their marks."""
    rows = [row for row in rows if row[0].need_bytes is not None]
    if not rows:
        return
    answers = [answer for answer, _ in rows]
    words = "; ".join(
        f"{a.card.name}: needs {gib(a.need_bytes or 0)} of {gib(a.card.usable_bytes)}, {a.verdict}" for a in answers
    )
    draw(memory_bars(rows), alt=f"Bars of the memory needed against each GPU's capacity. {words}")
    st.caption(marks_words(answers))


def marks_words(answers: Sequence[Answer]) -> str:
    """Return sentences that explain the marks in the chart of these answers."""
    beyond = " Missing memory is hatched, and the line is red." if any(map(_is_beyond, answers)) else ""
    minimum = " ▲ is the minimum with which the request still runs." if any(map(_has_minimum, answers)) else ""
    upper = " The line beyond a bar reaches to the upper end of the need." if any(map(_has_range, answers)) else ""
    return f"Bars are the memory needed, vertical lines the usable memory of the GPU.{beyond}{minimum}{upper}"


def memory_bars(rows: Sequence[Row], look: Look = PAGE) -> dict[str, Any]:
    """Return the Vega-Lite specification of each need as a bar of its parts.

    Marks are the capacity, the minimum, and the upper end of the need. Every answer must have a need. The chart is
    written out because Plan draws it after each change, and making it with Altair took most of a script's time.
    """
    answers = [answer for answer, _ in rows]
    end = 1.02 * max(gib_value(max(a.card.usable_bytes, a.need_bytes or 0, a.worst_need_bytes or 0)) for a in answers)
    axes = {"x": _gib_axis(end), "y": _gpu_rows([answer.card.name for answer in answers], look)}
    # A mark must be drawn after its bar. Layers without data would only cost time.
    layers = [
        _free([a for a in answers if not _is_beyond(a)], look),
        _need(rows, look),
        _beyond([a for a in answers if _is_beyond(a)], end, look),
        _upper_end([a for a in answers if _has_range(a)]),
        _capacity(answers, look),
        _minimum([a for a in answers if _has_minimum(a)], look),
    ]
    drawn = [layer | {"encoding": layer["encoding"] | axes} for layer in layers if layer["data"]["values"]]
    return sized_spec({"layer": drawn}, look.row * len(rows))


def _layer(values: Sequence[Mapping[str, Any]], mark: Mapping[str, Any], **encoding: Any) -> dict[str, Any]:
    return {"data": {"values": list(values)}, "mark": dict(mark), "encoding": encoding}


def _is_beyond(answer: Answer) -> bool:
    return (answer.headroom_bytes or 0) < 0


def _has_minimum(answer: Answer) -> bool:
    return answer.minimum_bytes not in (None, answer.need_bytes)


def _has_range(answer: Answer) -> bool:
    return (answer.worst_need_bytes or 0) > (answer.need_bytes or 0)


def _gib_axis(end: float) -> dict[str, Any]:
    axis = {"title": "GiB", "titlePadding": 4, "tickCount": 6}
    scale = {"domain": [0, end], "nice": False}
    return {"field": "GiB", "type": "quantitative", "scale": scale, "stack": None, "axis": axis}


def _gpu_rows(names: Sequence[str], look: Look) -> dict[str, Any]:
    """Return an axis with a row for each GPU, its name above the bar or beside it."""
    # Beside the bar, a long name would take the whole width of a phone.
    above = {"labelAlign": "left", "labelPadding": 0, "labelOffset": -look.bar / 2 - 16, "labelLimit": 0, "zindex": 1}
    beside = {"labelLimit": 200}
    axis = {"ticks": False, "domain": False, **(above if look.names_above else beside)}
    return {"field": "GPU", "type": "nominal", "sort": list(names), "title": None, "axis": axis}


def _tooltip(**titles: str) -> list[dict[str, str]]:
    named = ({"field": field, "title": title, "type": "nominal"} for field, title in titles.items())
    return [{"field": "GPU", "type": "nominal"}, *named]


def _free(answers: Sequence[Answer], look: Look) -> dict[str, Any]:
    """Draw the usable memory of a GPU beyond the need."""
    spans = [
        {
            "GPU": answer.card.name,
            "GiB": gib_value(answer.need_bytes or 0),
            "end": gib_value(answer.card.usable_bytes),
            "label": f"{gib(answer.card.usable_bytes)} usable",
        }
        for answer in answers
    ]
    mark = {"type": "bar", "size": look.bar, "color": "#868e96", "opacity": 0.22}
    return _layer(spans, mark, x2={"field": "end"}, tooltip=_tooltip(label="capacity"))


def _need(rows: Sequence[Row], look: Look) -> dict[str, Any]:
    spans = []
    for answer, parts in rows:
        begin = 0
        for name, size in parts:
            piece = {"part": name, "GiB": gib_value(begin), "end": gib_value(begin + size), "size": gib(size)}
            spans += [{"GPU": answer.card.name, **piece}] if size else []
            begin += size
    # A gap of one pixel separates neighbours for readers who cannot distinguish their colours.
    mark = {"type": "bar", "size": look.bar, "x2Offset": -1}
    color = part_color_spec(list(dict.fromkeys(span["part"] for span in spans)))
    return _layer(spans, mark, x2={"field": "end"}, color=color, tooltip=_tooltip(part="part", size="size"))


def _beyond(answers: Sequence[Answer], end: float, look: Look) -> dict[str, Any]:
    """Hatch the memory that a GPU lacks."""
    points = []
    for answer in answers:
        usable, need = gib_value(answer.card.usable_bytes), gib_value(answer.need_bytes or 0)
        count = max(1, ceil((need - usable) / end * _STROKES) - 1)
        step, label = (need - usable) / (count + 1), gib(-(answer.headroom_bytes or 0))
        points += [{"GPU": answer.card.name, "GiB": usable + step * (i + 1), "label": label} for i in range(count)]
    # White has a contrast of at least 3:1 to each part's colour.
    # The shape has unit size; the mark scales it by the square root of its size.
    stroke = {"shape": "M-0.12,0.5L0.12,-0.5", "size": (look.bar - 2) ** 2, "filled": False}
    mark = {"type": "point", **stroke, "color": "white", "strokeWidth": 1.5, "opacity": 1}
    return _layer(points, mark, tooltip=_tooltip(label="lacks"))


def _upper_end(answers: Sequence[Answer]) -> dict[str, Any]:
    lines = [
        {
            "GPU": answer.card.name,
            "GiB": gib_value(answer.need_bytes or 0),
            "end": gib_value(answer.worst_need_bytes or 0),
            "label": gib(answer.worst_need_bytes or 0),
        }
        for answer in answers
    ]
    mark = {"type": "rule", "strokeWidth": 3, "color": GREY}
    return _layer(lines, mark, x2={"field": "end"}, tooltip=_tooltip(label="may need up to"))


def _capacity(answers: Sequence[Answer], look: Look) -> dict[str, Any]:
    marks = [
        {
            "GPU": answer.card.name,
            "GiB": gib_value(answer.card.usable_bytes),
            "label": f"{gib(answer.card.usable_bytes)} usable",
            "verdict": answer.verdict,
            "beyond": _is_beyond(answer),
        }
        for answer in answers
    ]
    mark = {"type": "tick", "thickness": 5, "size": look.bar + _OVERHANG, "opacity": 1, "strokeWidth": 2}
    # On the colour of a part, red is visible only with a white border.
    return _layer(
        marks,
        mark,
        color={"condition": {"test": "datum.beyond", "value": RED}, "value": GREY},
        stroke={"condition": {"test": "datum.beyond", "value": "white"}, "value": "transparent"},
        tooltip=_tooltip(label="capacity", verdict="verdict"),
    )


def _minimum(answers: Sequence[Answer], look: Look) -> dict[str, Any]:
    sizes = [(answer.card.name, answer.minimum_bytes or 0) for answer in answers]
    points = [{"GPU": name, "GiB": gib_value(size), "label": gib(size)} for name, size in sizes]
    below = {"shape": "triangle-up", "size": 60, "yOffset": look.bar / 2 + 5}
    mark = {"type": "point", **below, "filled": True, "opacity": 1, "color": look.ink}
    return _layer(points, mark, tooltip=_tooltip(label="minimum"))
