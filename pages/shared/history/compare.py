"""Compare several runs: a chart of their peaks, and tables of their differences."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import streamlit as st
from pandas import DataFrame

from cache.records import Measurement
from pages.shared.frame.charts import SERIES_COLORS, altair, data, draw, gib_axis, sized
from pages.shared.frame.chrome import is_phone
from pages.shared.frame.escape import plain
from pages.shared.frame.tables import SOFT_TEXT, draw_table, is_dark
from pages.shared.history.differences import APART, KINDS, Line, difference_lines
from pages.shared.history.run import when
from pages.shared.history.runs import task_of
from planner.components import STAGE_NAMES
from planner.units import gib, gib_value

MOST = len(SERIES_COLORS)
_WHOLE = "Whole run"


def _size(run: Measurement) -> str:
    return f"{run.request.effective_width}×{run.request.effective_height}"


def letter_of(place: int) -> str:
    """Return the letter that names the run of this place in the chart and in the table."""
    return chr(ord("A") + place)


def telling(runs: Sequence[Measurement]) -> list[str]:
    """Describe each run by what distinguishes it from the others."""
    candidates: tuple[Callable[[Measurement], str], ...] = (
        lambda run: run.environment.card_name,
        task_of,
        _size,
        lambda run: f"batch {run.request.batch}",
        lambda run: run.options or "no options",
        lambda run: f"{run.request.steps} step{'' if run.request.steps == 1 else 's'}",
        lambda run: f"torch {run.environment.torch.partition('+')[0]}",
    )
    apart = [of for of in candidates if len({of(run) for run in runs}) > 1]
    texts = [", ".join(text for of in (*apart, when) if (text := of(run))) for run in runs]
    if len(set(texts)) == len(runs):
        return texts
    # Repeats within one minute differ only in their identifiers.
    return [f"{text}, run {run.measurement_id[:8]}" for text, run in zip(texts, runs, strict=True)]


def _chart(runs: Sequence[Measurement], names: Sequence[str], colors: Sequence[str]) -> None:
    alt = altair()
    # Reference runs have no peaks of stages.
    peaks = [
        (name, stage, size)
        for run, name in zip(runs, names, strict=True)
        for stage, size in (
            *((STAGE_NAMES.get(one.stage, one.stage), one.peak_allocated_bytes) for one in run.measured.stages),
            (_WHOLE, run.measured.peak_allocated_bytes),
        )
    ]
    values: list[dict[str, Any]] = [
        {"stage": stage, "run": name, "GiB": gib_value(size), "size": gib(size)}
        for name, stage, size in peaks
        if size is not None
    ]
    if not values:
        st.caption("None of these runs has a peak: they ended too early.")
        return
    there = {value["stage"] for value in values}
    order = [name for name in (*STAGE_NAMES.values(), _WHOLE) if name in there]
    chart = (
        data(values)
        .mark_bar(cornerRadiusEnd=2)
        .encode(
            y=alt.Y("stage:N", sort=order, title=None, axis=alt.Axis(labelLimit=150, ticks=False, domain=False)),
            yOffset=alt.YOffset("run:N", sort=list(names)),
            x=gib_axis(1.05 * max(value["GiB"] for value in values), ticks=5),
            color=alt.Color(
                "run:N",
                sort=list(names),
                scale=alt.Scale(domain=list(names), range=list(colors)),
                legend=alt.Legend(orient="top", title=None, columns=MOST),
            ),
            tooltip=[alt.Tooltip("stage:N"), alt.Tooltip("run:N"), alt.Tooltip("size:N")],
        )
    )
    words = "; ".join(
        f"{stage}: " + ", ".join(f"{value['run']} {value['size']}" for value in values if value["stage"] == stage)
        for stage in order
    )
    # Each bar is 14 pixels high, and so is the gap below each stage.
    height = 14 * len(names) * len(order) + 14 * len(order)
    draw(sized(chart, height), alt=f"Bars of the allocated peak by stage, for each run. {words}")
    st.caption("Allocated peak of each stage, and of the whole run.")


def in_order(runs: Sequence[Measurement]) -> list[Measurement]:
    """Return the runs that are compared, the oldest first: later ones show what changed."""
    return sorted(runs[:MOST], key=lambda run: (run.created_at, run.measurement_id))


def comparison(runs: Sequence[Measurement]) -> None:
    """Draw the comparison of the chosen runs."""
    more, runs = len(runs) - MOST, in_order(runs)
    letters = [letter_of(place) for place in range(len(runs))]
    with st.container(border=True):
        st.markdown(f"**{len(runs)} runs compared**")
        if more > 0:
            st.caption(f"The first {MOST} of the selected runs; {more} more are selected.")
        named = zip(letters, telling(runs), strict=True)
        st.markdown("\n".join(f"- **{letter}** {plain(text)}" for letter, text in named))
        changed = " B against A is what changed since." if len(runs) == 2 else ""
        st.caption(f"A is the oldest run.{changed}" if len(runs) > 2 else f"A is the older run.{changed}")
        if any(run.scope != "pipeline" for run in runs):
            st.caption(
                "Peaks of one half of the VAE alone do not include the weights and what else was allocated before."
            )
        _chart(runs, letters, SERIES_COLORS[: len(runs)])
        every = st.toggle("Show all", key="compare-all", help="Show also what all of these runs have in common.")
        lines = difference_lines(runs)
        for kind in KINDS:
            _table(kind, [line for line in lines if line.kind == kind and (every or line.is_told)], letters)


def _table(kind: str, lines: Sequence[Line], letters: Sequence[str]) -> None:
    """Draw the lines of one kind under a heading, those with equal values in grey."""
    if not lines:
        return
    apart = f"{letters[1]} against {letters[0]}" if len(letters) == 2 and kind in APART else None
    rows = DataFrame(
        [
            {"": line.name, **dict(zip(letters, line.values, strict=True))} | ({apart: line.apart} if apart else {})
            for line in lines
        ]
    )
    grey = f"color: {SOFT_TEXT[is_dark()]}"
    equal = [not line.differs for line in lines]
    styler = rows.style.apply(lambda row: ["", *[grey if equal[row.name] else ""] * (len(row) - 1)], axis=1)
    st.markdown(f"**{kind}**")
    first, others, last = (108 if apart else 134, 64, 88) if is_phone() else (200, 120, 140)
    widths = {"": first} | dict.fromkeys(letters, others) | ({apart: last} if apart else {})
    draw_table(
        styler,
        hide_index=True,
        height="content",
        alt=f"{kind} of the compared runs",
        column_config={
            name: st.column_config.TextColumn(APART[kind] if name == apart else name, width=width, pinned=name == "")
            for name, width in widths.items()
        },
    )
