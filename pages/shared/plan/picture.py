"""Draw the plan as one picture for a ticket.

The picture has the verdicts, memory against capacity, memory over time, and the basis of the plan. The charts are
those of the page. vl-convert draws them without a browser, a network or a display.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from textwrap import wrap
from typing import Any

from pages.shared.frame.charts import GREEN, GREY, INK, ORANGE, PICTURE, RED, SOFT, spec_of
from pages.shared.plan.memory_chart import Row, marks_words, memory_bars
from pages.shared.plan.timeline_chart import curve_rows, memory_over_time
from planner.alternatives.images import Listed
from planner.answer import Answer, Verdict
from planner.replay.timeline import Timeline
from planner.request import GenerationRequest
from planner.units import gib, signed_gib

Spec = dict[str, Any]

_WIDTH, _SCALE = 880, 2
_OF_PAGE = ("$schema", "config", "autosize")
# vl-convert ships this font. Signs that it lacks are drawn as shapes, not as text.
_FONT = "Liberation Sans, Arial, sans-serif"
_LINE = 170
_CHECK, _CROSS = "M-0.9,0.1L-0.3,0.7L0.9,-0.7", "M-0.7,-0.7L0.7,0.7M0.7,-0.7L-0.7,0.7"
_SIGNS: dict[Verdict, tuple[str, str]] = {
    "fits": (_CHECK, GREEN),
    "tight": ("triangle-up", ORANGE),
    "no": (_CROSS, RED),
}
# The position of each column of the table in pixels, and whether its cells end there.
_COLUMNS = (
    ("GPU", 0, False),
    ("verdict", 262, False),
    ("need", 420, True),
    ("minimum", 510, True),
    ("usable", 600, True),
    ("headroom", 700, True),
    ("basis", 730, False),
)


def _text(
    rows: Iterable[tuple[float, float, str]],
    *,
    size: int = 12,
    bold: bool = False,
    color: str = INK,
    ends: bool = False,
) -> Spec:
    """Return a layer of text that begins, or `ends`, at (x, y) in pixels."""
    return {
        "data": {"values": [{"x": x, "y": y, "text": text} for x, y, text in rows]},
        "mark": {
            "type": "text",
            "align": "right" if ends else "left",
            "baseline": "middle",
            "fontSize": size,
            "fontWeight": "bold" if bold else "normal",
            "color": color,
        },
        "encoding": {
            "x": {"field": "x", "type": "quantitative", "scale": None, "axis": None},
            "y": {"field": "y", "type": "quantitative", "scale": None, "axis": None},
            "text": {"field": "text", "type": "nominal"},
        },
    }


def _block(layers: list[Spec], height: float) -> Spec:
    return {"width": _WIDTH, "height": height, "layer": layers}


def _lines(lines: Sequence[str], *, size: int = 11, color: str = SOFT) -> Spec:
    return _block([_text([(0, 8 + 16 * i, t) for i, t in enumerate(lines)], size=size, color=color)], 16 * len(lines))


def _wrapped(texts: Iterable[str]) -> list[str]:
    return [line for text in texts for line in wrap(text, _LINE)]


def _cells(answer: Answer) -> tuple[str, ...]:
    headroom = answer.headroom_bytes
    sizes = (answer.need_bytes, answer.minimum_bytes, answer.card.usable_bytes)
    need, minimum, usable = ("-" if size is None else gib(size) for size in sizes)
    shown = "-" if headroom is None else signed_gib(headroom)
    return (answer.card.name, answer.verdict, need, minimum, usable, shown, answer.basis)


def _table(answers: Sequence[Answer], images: Sequence[str] = ()) -> Spec:
    """Return a table with a row for each answer.

    With `images`, one text for each row, these take the column of the basis, which the first table has already.
    """
    ys = [34 + 22 * index for index in range(len(answers))]
    layers = []
    for place, (name, x, ends) in enumerate(_COLUMNS):
        of_images = images and name == "basis"
        layers.append(_text([(x, 8, "image" if of_images else name)], bold=True, color=SOFT, ends=ends))
        texts = images if of_images else [_cells(answer)[place] for answer in answers]
        cells = [(x, y, text) for y, text in zip(ys, texts, strict=True)]
        layers.append(_text(cells, bold=name in ("GPU", "verdict"), ends=ends))
    for verdict, (shape, color) in _SIGNS.items():
        is_line = shape.startswith("M")
        at = [{"x": 248, "y": y} for y, answer in zip(ys, answers, strict=True) if answer.verdict == verdict]
        mark: Spec = {"type": "point", "shape": shape, "size": 80 if is_line else 90, "opacity": 1, "color": color}
        mark |= {"filled": False, "strokeWidth": 2.4} if is_line else {"filled": True}
        position = _text([])["encoding"]
        layers.append({"data": {"values": at}, "mark": mark, "encoding": {key: position[key] for key in ("x", "y")}})
    unknown = [(244, y, "?") for y, answer in zip(ys, answers, strict=True) if answer.verdict == "unknown"]
    layers.append(_text(unknown, bold=True, color=GREY))
    return _block(layers, 28 + 22 * len(answers))


def _heading(text: str) -> Spec:
    return _block([_text([(0, 10, text)], size=13, bold=True)], 16)


def _images(images: Listed) -> list[Spec]:
    """Return the worst of the listed images on each GPU, and the list."""
    listed = f"The list: {'; '.join(row.text for row in images.rows)}."
    table = _table([one.answer for one in images.worst], [one.row.text for one in images.worst])
    return [_heading(images.title), table, _lines(_wrapped([listed]))]


def _part(chart: Spec) -> Spec:
    """Return a chart as one part of a page, without its own schema and settings."""
    return {key: value for key, value in chart.items() if key not in _OF_PAGE} | {"width": _WIDTH}


def picture_spec(
    request: GenerationRequest,
    rows: Sequence[Row],
    timeline: tuple[str, Timeline, int] | None,
    notes: Sequence[str],
    caption: str,
    images: Listed | None = None,
) -> Spec:
    """Return the page as Vega-Lite; `timeline` has its GPU's name and capacity in bytes."""
    title = _text([(0, 12, "Will it fit?")], size=22, bold=True)
    described = [(0, 40 + 18 * i, line) for i, line in enumerate(wrap(request.describe(), 120))]
    pieces = [
        _block([title, _text(described, size=14)], 34 + 18 * len(described)),
        _table([answer for answer, _ in rows]),
        *(_images(images) if images else ()),
    ]
    charted = [row for row in rows if row[0].need_bytes is not None]
    if charted:
        marks = marks_words([answer for answer, _ in charted])
        pieces += [_heading("Memory needed and usable memory of each GPU"), _lines(_wrapped([marks]))]
        pieces.append(_part(spec_of(memory_bars(charted, PICTURE))))
    if timeline is not None:
        name, drawn, capacity_bytes = timeline
        heading = f"Memory over the dry run on {name}, from allocation to allocation. The diamond is the peak."
        chart = memory_over_time(drawn, capacity_bytes, PICTURE)
        pieces += [_heading(heading), _part(spec_of(chart, curve_rows(drawn)))]
    if notes:
        pieces.append(_lines(_wrapped(notes)))
    pieces.append(_lines(_wrapped([caption]), size=11))
    return {
        "$schema": "https://vega.github.io/schema/vega-lite/v6.json",
        "background": "white",
        "padding": 28,
        "spacing": 22,
        "config": {
            "font": _FONT,
            "view": {"stroke": None},
            "axis": {"labelColor": SOFT, "titleColor": SOFT, "gridColor": "#e3e6ec", "labelFontSize": 11},
            "legend": {"labelColor": INK, "labelFontSize": 11},
        },
        "vconcat": pieces,
        "resolve": {
            "scale": {"color": "independent", "x": "independent", "y": "independent", "opacity": "independent"}
        },
    }


def picture_png(spec: Spec) -> bytes:
    """Return the page as a PNG, twice as fine as a screen."""
    import vl_convert

    return vl_convert.vegalite_to_png(spec, scale=_SCALE)


def picture_svg(spec: Spec) -> str:
    """Return the page as an SVG, whose text stays text."""
    import vl_convert

    return vl_convert.vegalite_to_svg(spec)
