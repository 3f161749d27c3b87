"""Draw the peaks of requests that were measured more than once on one GPU model."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta

import streamlit as st
from pandas import DataFrame

from cache.records import Measurement
from pages.shared.frame.charts import GREY, SERIES_COLORS, altair, data, draw
from pages.shared.history.runs import Runs
from planner.units import gib, gib_value

# More would slow the page down without making the chart clearer.
MOST_REQUESTS, MOST_RUNS = 100, 1000


def repeated(shown: DataFrame) -> dict[str, list[int]]:
    """Return the places of the runs of each repeated request, the most often measured first."""
    peaks = shown[(shown["Outcome"] == "ok") & shown["Allocated"].notna() & (shown["scope"] == "pipeline")]
    again = peaks[peaks.groupby(["request", "GPU"])["id"].transform("size") > 1]
    most = again["request"].value_counts(sort=True).index[:MOST_REQUESTS]
    places = again.groupby("request").indices
    return {request: again.index[places[request]].tolist() for request in most}


def time_axis(times: Sequence[datetime]) -> tuple[tuple[datetime, datetime], str]:
    """Return the ends of an axis of time, and a format whose labels on it all differ.

    The axis has about four labels, so that two are a quarter of its length apart.
    """
    low, high = min(times), max(times)
    # Runs of one moment still need an axis with a length.
    around = max(0.04 * (high - low), timedelta(seconds=0.5))
    length = high - low + 2 * around
    if length < timedelta(seconds=20):
        labels = "%H:%M:%S.%L"
    elif length < timedelta(minutes=10):
        labels = "%H:%M:%S"
    elif low.date() == high.date():
        labels = "%H:%M"
    else:
        labels = "%b %d, %H:%M" if length < timedelta(days=8) else "%Y-%m-%d"
    return (low - around, high + around), labels


def _release(run: Measurement) -> str:
    return run.environment.torch.partition("+")[0]


def _words(runs: list[Measurement]) -> str:
    gpus: dict[str, list[int]] = {}
    for run in runs:
        gpus.setdefault(run.environment.card_name, []).append(run.measured.peak_allocated_bytes or 0)
    return "; ".join(
        f"{gpu}, {len(sizes)} runs: between {gib(min(sizes))} and {gib(max(sizes))}" for gpu, sizes in gpus.items()
    )


def _chart(runs: list[Measurement]) -> None:
    alt = altair()
    values = [
        {
            "when": run.created_at,
            "GiB": gib_value(run.measured.peak_allocated_bytes or 0),
            "time": run.created_at[:16].replace("T", " "),
            "size": gib(run.measured.peak_allocated_bytes or 0, 3),
            # All GPUs have the maker's name, which would only take room.
            "GPU": run.environment.card_name.removeprefix("NVIDIA "),
            "torch": _release(run),
        }
        for run in runs
    ]
    versions, gpus = (
        sorted({str(value["torch"]) for value in values}),
        sorted({str(value["GPU"]) for value in values}),
    )
    times = [datetime.fromisoformat(run.created_at).astimezone(UTC) for run in runs]
    domain_x, labels = time_axis(times)
    # The day is said once, where the labels leave it out.
    title = f"{min(times):%Y-%m-%d}, UTC" if labels.startswith("%H") else "UTC"
    axis = alt.Axis(format=labels, tickCount=4, labelOverlap=True, title=title, titlePadding=4)
    x = alt.X(
        "when:T", scale=alt.Scale(type="utc", domain=[end.isoformat() for end in domain_x], nice=False), axis=axis
    )
    # If all runs agree to the byte, the axis still needs a length.
    sizes = [float(value["GiB"]) for value in values]
    around = max(0.1 * (max(sizes) - min(sizes)), 0.005 * max(sizes))
    domain = [min(sizes) - around, max(sizes) + around]
    y = alt.Y(
        "GiB:Q",
        scale=alt.Scale(zero=False, domain=domain, nice=True),
        title="Allocated peak, GiB",
        axis=alt.Axis(tickCount=5),
    )
    base = data(values)
    lines = base.mark_line(color=GREY, strokeWidth=1.5).encode(x=x, y=y, detail="GPU:N")
    colors = [SERIES_COLORS[place % len(SERIES_COLORS)] for place in range(len(versions))]
    top = alt.Legend(orient="top", columns=3, labelLimit=140)
    # The default black of shapes cannot be seen on a dark page.
    gray = {"symbolFillColor": GREY, "symbolStrokeColor": GREY}
    bottom = alt.Legend(orient="bottom", columns=2, labelLimit=140, **gray)
    points = base.mark_point(size=60, filled=True, opacity=1).encode(
        x=x,
        y=y,
        color=alt.Color("torch:N", scale=alt.Scale(domain=versions, range=colors), legend=top, title="torch"),
        shape=alt.Shape("GPU:N", scale=alt.Scale(domain=gpus), legend=bottom if gpus[1:] else None, title="GPU"),
        tooltip=[
            alt.Tooltip("time:N", title="when, UTC"),
            alt.Tooltip("size:N", title="allocated peak"),
            alt.Tooltip("GPU:N"),
            alt.Tooltip("torch:N"),
        ],
    )
    chart = alt.layer(lines, points).properties(height=300 + 30 * (len(gpus) if gpus[1:] else 0))
    draw(chart, alt=f"Allocated peaks over time, by GPU and torch version. {_words(runs)}")


def repeats_view(runs: Runs, shown: DataFrame) -> None:
    """Let a repeated request be chosen, if there is one, and draw its peaks over time."""
    found = repeated(shown)
    if not found:
        return
    st.header("Requests measured more than once", anchor=False)
    st.caption("How much the peak of one request moves from run to run, on one GPU model, and with another torch.")

    def label(request_id: str) -> str:
        places = found[request_id]
        return f"{runs.measurements[places[0]].request.describe()}: {len(places)} runs"

    one = st.selectbox(
        "Request",
        list(found),
        format_func=label,
        key="repeated",
        help="Requests of the runs above that were completed more than once on one GPU model, the most "
        f"often measured first{f', {MOST_REQUESTS} at most' if len(found) == MOST_REQUESTS else ''}.",
    )
    places = found[one or next(iter(found))]
    _chart([runs.measurements[place] for place in places[:MOST_RUNS]])
    newest = f" The newest {MOST_RUNS:,} are drawn." if len(places) > MOST_RUNS else ""
    st.caption(f"Each point is a run. A line joins the runs of one GPU model, and a colour is a torch release.{newest}")
