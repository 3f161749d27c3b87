"""The dry run drawn: memory from event to event over the stages, and the peak as a bar of its parts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from pages.shared.frame.charts import BLUE, GREY, ORANGE, RED, VIOLET, altair, draw, part_color
from pages.shared.plan.memory import PartRow
from planner.components import STAGE_NAMES
from planner.units import gib, gib_value

if TYPE_CHECKING:
    from planner.replay.timeline import Band, Timeline

# A capacity more than so many times the peak would press the curve flat, and is told in words instead.
FAR = 2.5


def stage_name(stage: str) -> str:
    """What a band is called on screens."""
    return STAGE_NAMES.get(stage, "Loading")


def is_far(timeline: Timeline, capacity_bytes: int) -> bool:
    """Whether the capacity is too far above the run to be drawn."""
    return capacity_bytes > FAR * timeline.run.peak_reserved_bytes


def _band_axis(bands: Sequence[Band], alt: Any) -> Any:
    """The stages' names above their bands, in two rows by turns: a narrow band's name is wider than the band."""
    middles = [(band.begin + band.end) // 2 for band in bands]
    text = "''"
    for index, (middle, band) in enumerate(zip(middles, bands, strict=True)):
        rows = ["", stage_name(band.stage)] if index % 2 else [stage_name(band.stage), ""]
        text = f"datum.value == {middle} ? {rows} : {text}"
    return alt.Axis(
        orient="top",
        values=middles,
        labelExpr=text,
        labelOverlap=False,
        labelLimit=120,
        labelFontSize=10,
        labelFlush=False,
        grid=False,
        ticks=False,
        domain=False,
        title=None,
    )


def timeline_chart(timeline: Timeline, card_name: str, capacity_bytes: int) -> None:
    """Allocated and reserved from event to event, stages behind them, the capacity, and the peak marked."""
    alt = altair()
    run, ends = timeline.run, [point.event for point in timeline.points[1:]] + [timeline.events]
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
    # A step goes on until the next one; the last one has none.
    curve = [*stretches, stretches[-1] | {"event": timeline.events}]
    drawn = [] if is_far(timeline, capacity_bytes) else [capacity_bytes]
    top = max([gib_value(size) for size in (run.peak_reserved_bytes, *drawn)]) * 1.14
    x = alt.X(
        "event:Q",
        scale=alt.Scale(domain=[0, timeline.events], nice=False),
        axis=_band_axis(timeline.bands, alt),
    )
    scale = alt.Scale(domain=[0, top], nice=False)

    def y(field: str) -> Any:
        return alt.Y(f"{field}:Q", title="GiB", scale=scale, stack=None, axis=alt.Axis(tickCount=5))

    color = alt.Color(
        "series:N",
        scale=alt.Scale(domain=["allocated", "reserved"], range=[BLUE, VIOLET]),
        legend=alt.Legend(orient="bottom", title=None, symbolType="square", symbolOpacity=1),
    )
    bands = [{"event": band.begin, "end": band.end, "shade": index % 2} for index, band in enumerate(timeline.bands)]
    layers = [
        alt.Chart(alt.Data(values=bands))
        .mark_rect(color="#868e96")
        .encode(x=x, x2="end:Q", opacity=alt.Opacity("shade:N", scale=alt.Scale(range=[0.05, 0.17]), legend=None))
    ]
    for series, opacity in (("reserved", 0.35), ("allocated", 0.85)):
        layers.append(
            alt.Chart(alt.NamedData(name="curve"))
            .transform_calculate(series=f"'{series}'")
            .mark_area(interpolate="step-after", opacity=opacity, line=False)
            .encode(x=x, y=y(series), color=color)
        )
    # What is pointed at: an area has no tooltip of its own for each step.
    tips = [alt.Tooltip("stage:N"), alt.Tooltip("allocated :N"), alt.Tooltip("reserved :N")]
    layers.append(alt.Chart(alt.NamedData(name="stretches")).mark_rect(opacity=0).encode(x=x, x2="end:Q", tooltip=tips))
    failed = run.outcome != "ok"
    for size in drawn:
        layers += _line(size, "out of memory at " if failed else "room for ", RED if failed else GREY, x, y, alt)
    layers += _peak(timeline, x, y, alt)
    chart = alt.layer(*layers).properties(height=330)
    peak = f"Peak {gib(run.peak_allocated_bytes)} allocated, {gib(run.peak_reserved_bytes)} reserved"
    told = f"{peak}, of {gib(capacity_bytes)}; {'out of memory' if failed else 'it runs to the end'}."
    rows = {"curve": curve, "stretches": stretches}
    draw(chart, alt=f"Memory over the dry run on {card_name}. {told}", rows=rows)


def _line(size_bytes: int, words: str, color: str, x: Any, y: Any, alt: Any) -> list[Any]:
    values = [{"event": 0, "GiB": gib_value(size_bytes), "text": f"{words}{gib(size_bytes)}"}]
    chart = alt.Chart(alt.Data(values=values))
    return [
        chart.mark_rule(color=color, strokeWidth=2, strokeDash=[6, 3]).encode(y=y("GiB")),
        chart.mark_text(color=color, align="left", dx=4, dy=-7, fontWeight="bold").encode(
            x=x, y=y("GiB"), text="text:N"
        ),
    ]


def _peak(timeline: Timeline, x: Any, y: Any, alt: Any) -> list[Any]:
    size = timeline.run.peak_allocated_bytes
    values = [
        {
            "event": timeline.peak_event,
            "GiB": gib_value(size),
            "allocated": gib(size),
            "operation": timeline.operation,
            "module": timeline.module,
        }
    ]
    tips = [alt.Tooltip(f"{name}:N") for name in ("allocated", "operation", "module")]
    return [
        alt.Chart(alt.Data(values=values))
        .mark_point(shape="diamond", size=130, filled=True, opacity=1, color=ORANGE, stroke="white", strokeWidth=1)
        .encode(x=x, y=y("GiB"), tooltip=tips)
    ]


def peak_bar(rows: Sequence[PartRow]) -> None:
    """What the card holds at the peak as one bar, a piece for each kind."""
    alt = altair()
    kinds = list(dict.fromkeys(row.kind for row in rows))
    sizes = {kind: sum(row.size_bytes for row in rows if row.kind == kind) for kind in kinds}
    values = [
        {"part": kind, "order": order, "GiB": gib_value(size), "size": gib(size)}
        for order, (kind, size) in enumerate(sizes.items())
    ]
    chart = (
        alt.Chart(alt.Data(values=values))
        .mark_bar(size=26)
        .encode(
            x=alt.X("GiB:Q", stack="zero", title="GiB", axis=alt.Axis(tickCount=6)),
            color=part_color(kinds),
            order=alt.Order("order:Q"),
            tooltip=[alt.Tooltip("part:N"), alt.Tooltip("size:N")],
        )
        .properties(height=150)
    )
    told = ", ".join(f"{kind} {gib(size)}" for kind, size in sizes.items())
    draw(chart, alt=f"A bar of what the card holds at the peak: {told}")
