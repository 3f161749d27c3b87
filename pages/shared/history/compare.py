"""Compare several runs: a chart of their peaks, and a table of their differences."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import streamlit as st

from cache.records import Measurement
from pages.shared.frame.charts import BLUE, GREEN, GREY, ORANGE, ROSE, VIOLET, altair, data, draw, sized
from pages.shared.frame.escape import plain
from pages.shared.history.differences import difference_lines
from pages.shared.history.run import when
from pages.shared.history.runs import task_of
from planner.components import STAGE_NAMES
from planner.units import gib, gib_value

COLORS = (BLUE, ORANGE, GREEN, VIOLET, ROSE, GREY)
MOST = len(COLORS)
_WHOLE = "Whole run"
_PLACES = "compared"


def places_of(ids: Sequence[str], before: dict[str, int]) -> dict[str, int]:
    """Return a place for each run: its own from `before`, else the first free one.

    The place decides the run's letter and colour.
    """
    kept = {run: before[run] for run in ids if run in before}
    free = iter([place for place in range(MOST) if place not in kept.values()])
    return {run: kept[run] if run in kept else next(free) for run in ids}


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
    values = [
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
            x=alt.X("GiB:Q", title="Allocated peak, GiB", axis=alt.Axis(tickCount=5)),
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


def comparison(runs: Sequence[Measurement]) -> None:
    """Draw the comparison of the chosen runs."""
    more, runs = len(runs) - MOST, runs[:MOST]
    places = places_of([run.measurement_id for run in runs], st.session_state.get(_PLACES, {}))
    st.session_state[_PLACES] = places
    runs = sorted(runs, key=lambda run: places[run.measurement_id])
    letters = [letter_of(places[run.measurement_id]) for run in runs]
    with st.container(border=True):
        st.markdown(f"**{len(runs)} runs compared**")
        if more > 0:
            st.caption(f"The first {MOST} of the selected runs; {more} more are selected.")
        named = zip(letters, telling(runs), strict=True)
        st.markdown("\n".join(f"- **{letter}** {plain(text)}" for letter, text in named))
        if any(run.scope != "pipeline" for run in runs):
            st.caption(
                "Peaks of one half of the VAE alone do not include the weights and what else was allocated before."
            )
        _chart(runs, letters, [COLORS[place] for place in sorted(places.values())])
        every = st.toggle("Show all", key="compare-all", help="Show also what all of these runs have in common.")
        lines = [line for line in difference_lines(runs) if every or line.differs or line.always]
        apart = f"{letters[1]} against {letters[0]}"
        st.dataframe(
            [
                {"": line.name, **dict(zip(letters, line.values, strict=True))}
                | ({apart: line.apart} if len(runs) == 2 else {})
                for line in lines
            ],
            hide_index=True,
            height="content",
            alt="All values of the compared runs" if every else "Differences between the compared runs",
            column_config={"": st.column_config.TextColumn("", width=168, pinned=True)},
        )
