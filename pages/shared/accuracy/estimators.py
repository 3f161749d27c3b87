"""How far off other tools' formulas are, the published one and the dry run: a picture, and the table under it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import streamlit as st

from pages.shared.frame.charts import BLUE, GREEN, GREY, RED, altair, draw
from pages.shared.frame.escape import plain, sentence
from planner.accuracy.estimator_table import Line, Section, about, compare, notes, percent
from planner.accuracy.estimators import ESTIMATORS
from planner.accuracy.grading import Graded
from planner.calibration.runs import Observation
from planner.replay.assumptions import RUN_TO_RUN

_TOO_LITTLE, _TOO_MUCH, _WITHIN = "says too little", "says too much", f"within {RUN_TO_RUN:.2%}"
_COLORS = {_TOO_LITTLE: RED, _TOO_MUCH: BLUE, _WITHIN: GREEN}
# Errors in per cent at which the axis has a mark; beyond 100 % too little there is nothing.
_TICKS = (-100, -30, -10, -1, 0, 1, 10, 30, 100, 300, 1000, 3000)

# Each run is a dot for each estimator: of more runs than this the newest are drawn.
_MOST_DRAWN = 200


def side_of(error: float) -> str:
    """Say to which side an error is; what repeated runs differ by is to neither."""
    if abs(error) <= RUN_TO_RUN:
        return _WITHIN
    return _TOO_LITTLE if error < 0 else _TOO_MUCH


def _told(section: Section) -> str:
    """Tell the picture in words, for those who cannot see it."""
    lines = "; ".join(
        f"{line.name}: {percent(line.bias)} in the median, {percent(line.worst)} at worst, "
        f"{line.too_little} of {line.count} too low"
        for line in section.lines
    )
    return f"Median error of each estimator. {lines}."


def errors_chart(section: Section) -> None:
    """Draw each estimator's median error as a bar from zero, and every run's as a dot; fine near zero, coarse far."""
    alt = altair()
    dots: list[dict[str, Any]] = [
        {"estimator": line.name, "off": 100 * error, "side": side_of(error), "gpu": run.observation.card_name}
        | {"request": run.observation.request.describe()}
        for line in section.lines
        for run in section.runs[:_MOST_DRAWN]
        if (error := run.error(line.key)) is not None
    ]
    bars: list[dict[str, Any]] = [
        {"estimator": line.name, "off": 100 * line.bias, "zero": 0, "side": side_of(line.bias)}
        | {"median": percent(line.bias)}
        for line in section.lines
    ]
    ends = [mark["off"] for mark in (*dots, *bars)]
    low, high = min(ends), max(ends)
    domain = [min(1.3 * low, -1.3), max(1.3 * high, 1.3)]
    scale = alt.Scale(type="symlog", constant=0.3, domain=domain, nice=False)
    signed = "(datum.value > 0 ? '+' : datum.value < 0 ? '\u2212' : '') + abs(datum.value)"
    ticks = [tick for tick in _TICKS if domain[0] <= tick <= domain[1]]
    axis = alt.Axis(title="off by, %", values=ticks, labelExpr=signed, labelOverlap=True)
    x = alt.X("off:Q", scale=scale, axis=axis)
    names = [line.name for line in section.lines]
    y = alt.Y("estimator:N", sort=names, title=None, axis=alt.Axis(labelLimit=170, ticks=False, domain=False))
    color = alt.Color(
        "side:N",
        scale=alt.Scale(domain=list(_COLORS), range=list(_COLORS.values())),
        legend=alt.Legend(orient="top", title=None, columns=2, symbolType="square"),
    )
    tooltip = [alt.Tooltip("estimator:N"), alt.Tooltip("median:N", title="median")]
    median = (
        alt.Chart(alt.Data(values=bars))
        .mark_bar(size=10, opacity=0.55)
        .encode(x=x, x2="zero:Q", y=y, color=color, tooltip=tooltip)
    )
    # A median of nearly nothing has no bar that could be seen.
    at = (
        alt.Chart(alt.Data(values=bars))
        .mark_point(shape="diamond", size=110, filled=True, opacity=1)
        .encode(x=x, y=y, color=color, tooltip=tooltip)
    )
    each = (
        alt.Chart(alt.Data(values=dots))
        .mark_point(size=28, filled=True, opacity=0.8, color=GREY)
        .encode(
            x=x,
            y=y,
            tooltip=[
                alt.Tooltip("estimator:N"),
                alt.Tooltip("request:N"),
                alt.Tooltip("gpu:N", title="GPU"),
                alt.Tooltip("off:Q", format="+.2f", title="off by, %"),
            ],
        )
    )
    zero = alt.Chart(alt.Data(values=[{"off": 0}])).mark_rule(color=GREY, strokeDash=[4, 4]).encode(x=x)
    draw(alt.layer(zero, median, each, at).properties(height=alt.Step(26)), alt=_told(section))
    newest = f", of which the newest {_MOST_DRAWN} are drawn" if len(section.runs) > _MOST_DRAWN else ""
    st.caption(
        f"◆ is the median error of an estimator with its sign, each dot one run{newest}. Left of the dashed line is "
        "too little; the scale is fine near zero and coarse far from it."
    )


def _row(section: Section, line: Line) -> dict[str, Any]:
    def hundredfold(error: float | None) -> float | None:
        # As shown, so that what rounds to nothing has no sign.
        return None if error is None else round(100 * error, 2) + 0.0

    return {
        "Estimator": line.name,
        "Says too little": f"{line.too_little} of {line.count}",
        "Median": hundredfold(line.median_error),
        **{f"{name[0].upper()}{name[1:]}": hundredfold(line.groups[name]) for name in section.columns},
        "Worst": hundredfold(line.worst),
    }


def _table(section: Section) -> None:
    number, text = st.column_config.NumberColumn, st.column_config.TextColumn
    rows = [_row(section, line) for line in section.lines]
    groups = {f"{name[0].upper()}{name[1:]}": count for name, count in section.columns.items()}
    st.dataframe(
        rows,
        hide_index=True,
        height="content",
        placeholder="-",
        alt=f"How far off each estimator is: {section.label}",
        column_config={
            "Estimator": text("Estimator", width=170, pinned=True, help="The first two are the planner's own."),
            "Says too little": text(
                "Says too little",
                width=96,
                help=f"Runs of which it said more than {RUN_TO_RUN:.2%} too little, the dangerous side.",
            ),
            "Median": number("Median", format="%.2f %%", help="The median error, to either side."),
            **{
                name: number(
                    name,
                    format="%+.2f %%",
                    help=f"The median error of {count} run{'' if count == 1 else 's'}; negative is too low.",
                )
                for name, count in groups.items()
            },
            "Worst": number("Worst", format="%+.2f %%", help="The largest error; negative is too low."),
        },
    )


def estimators_view(graded: Sequence[Graded], observations: Sequence[Observation]) -> None:
    """Show how far off every estimator is on these runs; `observations` are all runs, those not graded among them."""
    comparison = compare(graded, observations)
    if not comparison.sections:
        return
    st.subheader("Other estimators", anchor=False)
    st.caption(
        f"The formulas of {len(ESTIMATORS)} other tools, as they were published, on the same runs. Too little is the "
        "dangerous side: a plan that trusts it runs out of memory."
    )
    labels = [section.label for section in comparison.sections]
    chosen = st.segmented_control(
        "Compare on",
        labels,
        default=labels[0],
        required=True,
        key="estimators",
        bind="query-params",
        help="Whole pipelines, or one half of the VAE alone by the peak allocated or reserved.",
    )
    section = comparison.sections[labels.index(chosen)]
    st.markdown(sentence(about(section)))
    errors_chart(section)
    _table(section)
    with st.expander("What each one counts, and what to know", icon=":material/info:"):
        st.markdown("\n".join(f"- {sentence(note)}" for note in notes(comparison)))
        st.markdown(
            "\n".join(f"- **{plain(one.name)}**: {plain(one.claims)}. {plain(one.source)}." for one in ESTIMATORS)
        )
