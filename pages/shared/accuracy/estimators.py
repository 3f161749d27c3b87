"""Compare the estimates of other tools with the published formula and the dry run: a chart and a table."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import streamlit as st

from pages.shared.frame.charts import GREY, RED, altair, data, draw, sized
from pages.shared.frame.escape import plain, sentence, typeset
from pages.shared.frame.tables import draw_table, with_signs
from planner.accuracy.estimator_table import Line, Section, about, compare, notes, percent
from planner.accuracy.estimators import ESTIMATORS
from planner.accuracy.grading import Graded
from planner.calibration.runs import Observation
from planner.replay.assumptions import RUN_TO_RUN

_TOO_LOW, _ENOUGH = "too low", "not too low"
# Too little memory is red, as in the chart of memory. No other colour is taken, since each means a basis elsewhere.
_COLORS = {_TOO_LOW: RED, _ENOUGH: GREY}
# Ticks of the axis, as errors in per cent. No error is below −100 %.
_TICKS = (-100, -30, -10, -1, 0, 1, 10, 30, 100, 300, 1000, 3000)

# Each run is a dot for each estimator, so only the newest runs are drawn.
_MOST_DRAWN = 200


def side_of(error: float) -> str:
    """Say whether an error is too low; the spread of repeated runs does not count as an error."""
    return _TOO_LOW if error < -RUN_TO_RUN else _ENOUGH


def _words(section: Section) -> str:
    """Describe the chart in words, for people who cannot see it."""
    lines = "; ".join(
        f"{line.name}: {percent(line.bias)} in the median, {percent(line.worst)} at worst, "
        f"{line.too_little} of {line.count} too low"
        for line in section.lines
    )
    return typeset(f"Median error of each estimator. {lines}.")


def errors_chart(section: Section) -> None:
    """Draw each estimator's median error as a bar, and the error of each run as a dot.

    Errors are in per cent. The scale is finer near zero.
    """
    alt = altair()
    dots: list[dict[str, Any]] = [
        {"estimator": line.name, "off": 100 * error, "side": side_of(error), "gpu": run.observation.card_name}
        | {"off_words": typeset(percent(error))}
        | {"request": run.observation.request.describe()}
        for line in section.lines
        for run in section.runs[:_MOST_DRAWN]
        if (error := run.error(line.key)) is not None
    ]
    bars: list[dict[str, Any]] = [
        {"estimator": line.name, "off": 100 * line.bias, "zero": 0, "side": side_of(line.bias)}
        | {"median": typeset(percent(line.bias))}
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
    y = alt.Y(
        "estimator:N",
        sort=names,
        scale=alt.Scale(domain=names),
        title=None,
        axis=alt.Axis(labelLimit=170, ticks=False, domain=False),
    )
    color = alt.Color(
        "side:N",
        scale=alt.Scale(domain=list(_COLORS), range=list(_COLORS.values())),
        legend=alt.Legend(orient="top", title=None, symbolType="diamond", symbolSize=110, offset=6, padding=4),
    )
    tooltip = [alt.Tooltip("estimator:N"), alt.Tooltip("median:N", title="median")]
    median = data(bars).mark_rule(strokeWidth=3).encode(x=x, x2="zero:Q", y=y, color=color, tooltip=tooltip)
    # The line of a median near zero is too short to be seen.
    at = (
        data(bars)
        .mark_point(shape="diamond", size=130, filled=True, opacity=1)
        .encode(x=x, y=y, color=color, tooltip=tooltip)
    )
    each = (
        data(dots)
        .mark_point(size=28, filled=False, opacity=1, strokeWidth=1.2, color=GREY)
        .encode(
            x=x,
            y=y,
            tooltip=[
                alt.Tooltip("estimator:N"),
                alt.Tooltip("request:N"),
                alt.Tooltip("gpu:N", title="GPU"),
                alt.Tooltip("off_words:N", title="off by"),
            ],
        )
    )
    zero = data([{"off": 0}]).mark_rule(color=GREY, strokeDash=[4, 4]).encode(x=x)
    draw(sized(alt.layer(zero, median, each, at), 26 * len(names)), alt=_words(section))
    newest = f", of which the newest {_MOST_DRAWN} are drawn" if len(section.runs) > _MOST_DRAWN else ""
    st.caption(
        f"◆ is the median error of an estimator, each ring is one run{newest}. Left of the dashed line the estimate is "
        "too low. From 1 % on, equal steps of the scale are equal factors, so that 1 % and 1000 % can both be read."
    )


def _row(section: Section, line: Line) -> dict[str, Any]:
    def hundredfold(error: float | None) -> float | None:
        return None if error is None else 100 * error

    return {
        "Estimator": line.name,
        "Too low": f"{line.too_little} of {line.count}",
        "Median": hundredfold(line.median_error),
        **{f"{name[0].upper()}{name[1:]}": hundredfold(line.groups[name]) for name in section.columns},
        "Worst": hundredfold(line.worst),
    }


def _table(section: Section) -> None:
    number, text = st.column_config.NumberColumn, st.column_config.TextColumn
    rows = [_row(section, line) for line in section.lines]
    groups = {f"{name[0].upper()}{name[1:]}": count for name, count in section.columns.items()}
    draw_table(
        with_signs(rows, [*groups, "Worst"]),
        hide_index=True,
        height="content",
        alt=f"How far off each estimator is: {section.label}",
        column_config={
            "Estimator": text("Estimator", width=170, pinned=True, help="The first two are the planner's own."),
            "Too low": text(
                "Too low",
                width=96,
                help=typeset(
                    f"Runs for which the estimate was more than {RUN_TO_RUN:.2%} too low: they would run out of memory."
                ),
            ),
            "Median": number("Median", format="%.2f %%", help="The median of errors without their sign."),
            **{
                name: number(
                    name,
                    help=f"The median error of {count} run{'' if count == 1 else 's'}; negative is too low.",
                )
                for name, count in groups.items()
            },
            "Worst": number("Worst", help="The largest error; negative is too low."),
        },
    )


def estimators_view(graded: Sequence[Graded], observations: Sequence[Observation]) -> None:
    """Draw how far off every estimator is on these runs.

    `observations` are all runs, with those that are not graded.
    """
    comparison = compare(graded, observations)
    if not comparison.sections:
        return
    st.header("Other estimators", anchor=False, divider="gray")
    st.caption(
        f"The formulas of {len(ESTIMATORS)} other tools, as published, on the same runs. A plan that trusts an "
        "estimate that is too low runs out of memory."
    )
    labels = [section.label for section in comparison.sections]
    chosen = st.segmented_control(
        "Compare on",
        labels,
        default=labels[0],
        required=True,
        key="estimators",
        bind="query-params",
        help="Runs of whole pipelines, or of one half of the VAE alone, by their allocated or reserved peak.",
    )
    section = comparison.sections[labels.index(chosen)]
    st.markdown(typeset(sentence(about(section))))
    errors_chart(section)
    _table(section)
    with st.expander("What each estimator counts, and notes"):
        st.markdown("\n".join(f"- {typeset(sentence(note))}" for note in notes(comparison)))
        st.markdown(
            "\n".join(f"- **{plain(one.name)}**: {plain(one.claims)}. {plain(one.source)}." for one in ESTIMATORS)
        )
