"""The chart of what each card needs against what it has, with a sentence for those who cannot see it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import streamlit as st

from pages.shared.frame.charts import GREY, RED, altair, draw, part_color
from planner.answer import Answer
from planner.units import gib, gib_value

# The pixels of a card's row: its name on top, then the bar, which the capacity's mark overhangs.
_ROW, _BAR, _MARK, _NAME_ABOVE = 70, 26, 34, 29


def memory_chart(answers: Sequence[tuple[Answer, Sequence[tuple[str, int]]]]) -> None:
    """What each card needs as one bar of its parts, the card's capacity as a mark above all, and the least it runs in.

    Each answer comes with its parts in (name, bytes), which add up to its need; one without a need is left out.
    """
    rows = [(answer, parts) for answer, parts in answers if answer.need_bytes is not None]
    if not rows:
        return
    shown = [answer for answer, _ in rows]
    least = [answer for answer in shown if answer.minimum_bytes not in (None, answer.need_bytes)]
    upper = [answer for answer in shown if (answer.worst_need_bytes or 0) > (answer.need_bytes or 0)]
    largest = max(gib_value(max(a.card.usable_bytes, a.need_bytes or 0, a.worst_need_bytes or 0)) for a in shown)
    y = _card_rows([answer.card.name for answer in shown])
    x = _gib_axis(largest)
    # The capacity is last but for what stands below it, so that a bar longer than its card does not hide its end.
    layers = [_room(shown, x, y), _need(rows, x, y)]
    layers += [_reach(upper, x, y)] if upper else []
    layers += [_capacity(shown, x, y)]
    layers += [_least(least, x, y)] if least else []
    told = "; ".join(
        f"{a.card.name}: needs {gib(a.need_bytes or 0)} of {gib(a.card.usable_bytes)}, {a.verdict}" for a in shown
    )
    chart = altair().layer(*layers).properties(height=altair().Step(_ROW))
    draw(chart, alt=f"Bars of the memory needed against each card's capacity. {told}")
    triangle = " ▲ is the least in which it still runs." if least else ""
    line = " The line beyond a bar reaches to the upper end of what it may need." if upper else ""
    st.caption(f"Each upright mark is what a card has usable; it is red where the need goes beyond.{triangle}{line}")


def _card_rows(names: Sequence[str]) -> Any:
    """A row for each card, its name above the bar: beside it, a long one would take a phone's width."""
    alt = altair()
    above = {"labelAlign": "left", "labelPadding": 0, "labelOffset": -_NAME_ABOVE, "labelLimit": 0}
    return alt.Y("card:N", sort=list(names), title=None, axis=alt.Axis(ticks=False, domain=False, zindex=1, **above))


def _gib_axis(largest: float) -> Any:
    alt = altair()
    scale = alt.Scale(domain=[0, largest * 1.02], nice=False)
    return alt.X("GiB:Q", title="GiB", scale=scale, axis=alt.Axis(tickCount=6))


def _data(values: Sequence[Mapping[str, Any]]) -> Any:
    return altair().Chart(altair().Data(values=list(values)))


def _tooltip(**titles: str) -> list[Any]:
    alt = altair()
    return [alt.Tooltip("card:N"), *(alt.Tooltip(f"{field}:N", title=title) for field, title in titles.items())]


def _capacities(shown: Sequence[Answer]) -> list[dict[str, Any]]:
    return [
        {
            "card": answer.card.name,
            "GiB": gib_value(answer.card.usable_bytes),
            "label": f"{gib(answer.card.usable_bytes)} usable",
            "missed": answer.headroom_bytes is not None and answer.headroom_bytes < 0,
            "verdict": answer.verdict,
        }
        for answer in shown
    ]


def _room(shown: Sequence[Answer], x: Any, y: Any) -> Any:
    marked = _data(_capacities(shown)).mark_bar(size=_BAR, color="#868e96", opacity=0.22, cornerRadiusEnd=3)
    return marked.encode(y=y, x=x, tooltip=_tooltip(label="capacity"))


def _need(rows: Sequence[tuple[Answer, Sequence[tuple[str, int]]]], x: Any, y: Any) -> Any:
    bars = [
        {"card": answer.card.name, "part": name, "order": place, "GiB": gib_value(size), "size": gib(size)}
        for answer, parts in rows
        for place, (name, size) in enumerate(parts)
    ]
    return (
        _data(bars)
        .mark_bar(size=_BAR)
        .encode(
            y=y,
            x=x.stack("zero"),
            color=part_color(list(dict.fromkeys(name for _, parts in rows for name, _ in parts))),
            order=altair().Order("order:Q"),
            tooltip=_tooltip(part="part", size="size"),
        )
    )


def _reach(upper: Sequence[Answer], x: Any, y: Any) -> Any:
    """From the need to the upper end of what it may be."""
    lines = [
        {
            "card": answer.card.name,
            "GiB": gib_value(answer.need_bytes or 0),
            "to": gib_value(answer.worst_need_bytes or 0),
            "label": gib(answer.worst_need_bytes or 0),
        }
        for answer in upper
    ]
    marked = _data(lines).mark_rule(strokeWidth=3, color=GREY)
    return marked.encode(y=y, x=x, x2="to:Q", tooltip=_tooltip(label="may need up to"))


def _capacity(shown: Sequence[Answer], x: Any, y: Any) -> Any:
    alt = altair()
    return (
        _data(_capacities(shown))
        .mark_tick(thickness=4, size=_MARK, opacity=1)
        .encode(
            y=y,
            x=x,
            color=alt.condition("datum.missed", alt.value(RED), alt.value(GREY)),
            tooltip=_tooltip(label="capacity", verdict="verdict"),
        )
    )


def _least(least: Sequence[Answer], x: Any, y: Any) -> Any:
    sizes = [(answer.card.name, answer.minimum_bytes or 0) for answer in least]
    points = [{"card": name, "GiB": gib_value(size), "label": gib(size)} for name, size in sizes]
    marked = _data(points).mark_point(
        shape="triangle-up", size=60, filled=True, opacity=1, color=GREY, yOffset=_MARK // 2 + 2
    )
    return marked.encode(y=y, x=x, tooltip=_tooltip(label="runs from"))
