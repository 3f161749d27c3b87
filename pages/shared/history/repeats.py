"""Draw the peaks of requests that were measured more than once on one GPU model."""

from __future__ import annotations

import streamlit as st
from pandas import DataFrame

from cache.records import Measurement
from pages.shared.frame.charts import BLUE, GREEN, GREY, ORANGE, ROSE, VIOLET, altair, data, draw
from pages.shared.history.runs import Runs
from planner.units import gib, gib_value

_COLORS = (BLUE, ORANGE, GREEN, VIOLET, ROSE, GREY)
# More would slow the page down without making the chart clearer.
MOST_REQUESTS, MOST_RUNS = 100, 1000


def repeated(shown: DataFrame) -> dict[str, list[int]]:
    """Return the places of the runs of each repeated request, the most often measured first."""
    peaks = shown[(shown["Outcome"] == "ok") & shown["Allocated"].notna() & (shown["scope"] == "pipeline")]
    again = peaks[peaks.groupby(["request", "GPU"])["id"].transform("size") > 1]
    most = again["request"].value_counts(sort=True).index[:MOST_REQUESTS]
    places = again.groupby("request").indices
    return {request: again.index[places[request]].tolist() for request in most}


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
    # Runs of one day are labelled by the hour, runs of several days by the day.
    one_day = runs[0].created_at[:10] == runs[-1].created_at[:10]
    axis = alt.Axis(format="%b %d, %H:%M" if one_day else "%Y-%m-%d", tickCount=4, labelOverlap=True)
    x = alt.X("when:T", scale=alt.Scale(type="utc", padding=12, nice=False), title=None, axis=axis)
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
    lines = base.mark_line(color=GREY, opacity=0.6, strokeWidth=1.5).encode(x=x, y=y, detail="GPU:N")
    colors = [_COLORS[place % len(_COLORS)] for place in range(len(versions))]
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
            alt.Tooltip("when:T", format="%Y-%m-%d %H:%M"),
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
    st.subheader("Repeated runs", anchor=False)

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
