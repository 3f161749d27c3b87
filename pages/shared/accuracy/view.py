"""Draw how far off predictions were: at a glance, by group, the worst runs, and one run by stage."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import streamlit as st

from pages.shared.accuracy.charts import residual_chart, scatter_chart, stages_chart
from pages.shared.accuracy.gpus import link_to
from pages.shared.frame.chrome import is_phone
from pages.shared.frame.escape import plain, typeset
from pages.shared.frame.tables import draw_table, signed, with_signs
from planner.accuracy.by_gpu import (
    CONFIRMED_WITHIN,
    HALVES,
    PEAKS,
    STATES,
    WHOLE,
    Confirmed,
    circumstances,
    confirmed,
    kinds_words,
    median_words,
    off_words,
    tally,
    versions_words,
    work_of,
)
from planner.accuracy.grading import GRADED_BASES, Graded, group_of, groups, size_class
from planner.calibration.calibrate import NOMINAL
from planner.components import STAGE_NAMES
from planner.units import gib, gib_value

# Charts and tables of more runs than this show the newest of them.
MOST_SHOWN = 600
_WORST = 10

GROUPINGS: dict[str, Callable[[Graded], str]] = {
    "GPU": lambda one: one.observation.card_name,
    "Stage": lambda one: STAGE_NAMES[one.peak_stage],
    "Size": lambda one: size_class(one.observation.request),
    "Options": lambda one: one.observation.traits.options,
    "What ran": lambda one: one.observation.request.task if one.is_whole else one.observation.scope,
    "Versions": versions_words,
}
BASIS_NAMES = {"formula": "Formula", "dry-run": "Dry run", "calibrated": "Calibrated"}


def run_name(one: Graded) -> str:
    """Name the run in a few words, with its GPU."""
    peak = "" if one.peak == "allocated" else ", reserved"
    return f"{work_of(one)} on {one.observation.card_name}{peak}"


def group_name(one: Graded, by: str) -> str:
    """Name the group of a run; runs with only a reserved peak have groups of their own."""
    name = GROUPINGS[by](one)
    return name if one.peak == "allocated" else f"{name}, reserved"


def percent(value: float) -> str:
    """Write a median error with as many digits as show it."""
    return median_words(value) if value < 0.1 else f"{100 * value:.0f} %"


def whole_view(graded: Sequence[Graded]) -> None:
    """Draw the accuracy on runs of whole pipelines, without halves of the VAE."""
    whole = [one for one in graded if one.is_whole]
    st.header("Whole pipelines", anchor=False, divider="gray")
    if not whole:
        st.info("No whole pipeline was measured yet, only the halves of the VAE below.", icon=":material/query_stats:")
        return
    headline(whole, WHOLE)
    charts_view(whole)
    confirmed_view(graded)
    st.subheader("By group", anchor=False)
    groups_view(whole, group_control(), "whole pipelines")
    chosen = worst_view(whole)
    one_run_view(whole, chosen)


def halves_view(graded: Sequence[Graded]) -> None:
    """Draw the accuracy on runs of one half of the VAE, if there are any."""
    halves = [one for one in graded if not one.is_whole]
    if not halves:
        return
    st.header("Halves of the VAE, run alone", anchor=False, divider="gray")
    st.caption(
        "A benchmark ran the encoder or the decoder of the VAE without the rest of the pipeline. Their peaks are the "
        "memory allocated on top of what was there before. They confirm the kernels of the VAE; the figures above do "
        "not count them."
    )
    headline(halves, HALVES)
    charts_view(halves)
    groups_view(halves, st.session_state.get("by") or next(iter(GROUPINGS)), "halves of the VAE")


def headline(graded: Sequence[Graded], counted: tuple[str, str]) -> None:
    """Draw the number of runs, the median error of each basis, and the share inside intervals.

    The figures are those of allocated peaks if there are any, else of reserved peaks: the two are never mixed.
    """
    allocated, reserved = (tally(one for one in graded if one.peak == peak) for peak in PEAKS)
    counts = allocated or reserved
    assert counts is not None, "there are no runs"
    everything, inside = group_of("all", counts.runs), counts.inside
    references = sum(one.observation.is_reference for one in counts.runs)
    with st.container(horizontal=True, gap="large"):
        st.metric(
            "Runs",
            f"{len(counts.runs):,}",
            help=f"{references:,} reference runs and {len(counts.runs) - references:,} runs of your history.",
        )
        for basis in reversed(GRADED_BASES):
            st.metric(
                f"{BASIS_NAMES[basis]} off by",
                percent(everything.error[basis]),
                help=typeset(
                    f"Median error of the {counts.runs[0].peak} peak without its sign. With its sign: "
                    f"{off_words(everything.bias[basis])}."
                ),
            )
        st.metric(
            "Inside interval",
            f"{100 * inside / len(counts.runs):.0f} %",
            help=f"{inside:,} of {len(counts.runs):,} measured peaks are inside the interval that the other runs give; "
            f"{100 * NOMINAL:.0f} % should be.",
        )
    # A median must not hide the worst run.
    worst = max(graded, key=lambda one: abs(one.error("calibrated")))
    st.caption(
        typeset(
            f"{plain(kinds_words(allocated, reserved, *counted))}. At worst: {plain(run_name(worst))}. Calibrated "
            f"values and the {100 * NOMINAL:.0f} % intervals are computed without the run itself."
        )
    )


def confirmed_view(graded: Sequence[Graded]) -> None:
    """Draw which conditions runs confirm on each compute capability, and which are not measured."""
    st.subheader("What is confirmed", anchor=False)
    st.caption(
        f"How many of the whole pipelines with each condition the dry run predicts within "
        f"{100 * CONFIRMED_WITHIN:.1f} %. Conditions that are not measured can be planned, but nobody has checked them."
    )
    found = confirmed(graded, is_whole=True)
    measured = [one for one in found if one.gpus]
    if is_phone():
        # On a phone, each of five columns would be one word wide.
        st.markdown("\n".join(line for one in measured for line in _confirmed_lines(one)))
    else:
        st.table(
            [
                {
                    "Compute capability": one.title,
                    "Measured on": ", ".join(one.gpus),
                    **{f"{state[:1].upper()}{state[1:]}": typeset(", ".join(one.words(state))) for state in STATES},
                }
                for one in measured
            ],
            hide_index=True,
            alt="Which conditions runs of whole pipelines confirm, by compute capability",
        )
    if empty := [one.title for one in found if not one.gpus]:
        st.caption(f"Nothing is measured on compute capability {', '.join(empty)}.")


def _confirmed_lines(one: Confirmed) -> list[str]:
    """Write one compute capability as a list in Markdown."""
    states = [f"  - {state}: {typeset(plain(', '.join(words)))}" for state in STATES if (words := one.words(state))]
    return [f"- **{plain(one.title)}** ({plain(', '.join(one.gpus))})", *states]


def _shown(graded: Sequence[Graded]) -> Sequence[Graded]:
    if len(graded) > MOST_SHOWN:
        st.caption(f"The newest {MOST_SHOWN:,} of {len(graded):,} runs are drawn; all of them count below.")
    return graded[:MOST_SHOWN]


def charts_view(graded: Sequence[Graded]) -> None:
    """Draw predicted against measured peaks, and below the error of each prediction."""
    shown = _shown(graded)
    points = [
        {
            "run": run_name(one),
            "basis": BASIS_NAMES[basis],
            "measured": gib_value(one.measured_bytes),
            "predicted": gib_value(one.predicted[basis]),
            "off": 100 * one.error(basis),
            "off_words": signed(100 * one.error(basis), 2),
            "sizes": f"{gib(one.predicted[basis])} of {gib(one.measured_bytes)}",
        }
        for basis in GRADED_BASES
        for one in shown
    ]
    intervals = [
        {
            "run": run_name(one),
            "measured": gib_value(one.measured_bytes),
            "low": gib_value(one.interval_bytes[0]),
            "high": gib_value(one.interval_bytes[1]),
        }
        for one in shown
    ]
    scatter_chart(points, intervals)
    residual_chart(points)


def group_control() -> str:
    """Draw the choice of grouping, and return it."""
    return st.segmented_control(
        "Group by",
        list(GROUPINGS),
        default="GPU",
        required=True,
        key="by",
        bind="query-params",
        help="Stage: where the run had its peak. Size: the pixels of all its images together. Reserved: runs of which "
        "only the reserved peak was published.",
    )


def groups_view(graded: Sequence[Graded], by: str, what: str) -> None:
    """Draw the median error of each basis for each group of runs; `what` says which runs."""
    percents = st.column_config.NumberColumn
    rows = [
        {
            by: group.name,
            "Runs": group.count,
            **{BASIS_NAMES[basis]: 100 * group.error[basis] for basis in GRADED_BASES},
            "Bias": 100 * group.bias["calibrated"],
            "Inside": 100 * group.covered,
        }
        for group in groups(graded, lambda one: group_name(one, by))
    ]
    styler = with_signs(rows, ["Bias"])
    draw_table(
        styler,
        hide_index=True,
        height="content",
        alt=f"Median error of each basis by {by.lower()}, {what}",
        column_config={
            **{
                name: percents(name, format="%.2f %%", help=f"{name}: median error of the peak, without its sign")
                for name in BASIS_NAMES.values()
            },
            "Bias": percents("Bias", help="Calibrated: median error with its sign, negative is too low"),
            "Inside": percents(
                "Inside",
                format="%.0f %%",
                help=f"Measured peaks inside their interval; {100 * NOMINAL:.0f} % should be",
            ),
        },
    )


def worst_view(graded: Sequence[Graded]) -> Graded | None:
    """Draw the runs with the largest calibrated errors, and return the selected one."""
    st.subheader("Worst runs", anchor=False)
    worst = sorted(graded, key=lambda one: -abs(one.error("calibrated")))[:_WORST]
    rows = [
        {
            "Run": run_name(one),
            **{BASIS_NAMES[basis]: 100 * one.error(basis) for basis in reversed(GRADED_BASES)},
            "Measured": gib_value(one.measured_bytes),
            "Inside": "yes" if one.is_covered else "no",
            "With": ", ".join([versions_words(one), *circumstances(one)]),
            "Origin": "reference" if one.observation.is_reference else "history",
            "Open": link_to(one),
        }
        for one in worst
    ]
    number = st.column_config.NumberColumn
    styler = with_signs(rows, BASIS_NAMES.values())
    # What fits a laptop's window; the eye above the table shows the others.
    in_sight = ["Run", *(BASIS_NAMES[basis] for basis in reversed(GRADED_BASES)), "Measured", "Inside", "Open"]
    event = draw_table(
        styler,
        column_order=in_sight,
        hide_index=True,
        height="content",
        on_select="rerun",
        selection_mode="single-row",
        key="worst",
        alt="The runs with the largest errors of the calibrated peak",
        column_config={
            # On a phone, the name alone would fill the width.
            "Run": st.column_config.TextColumn("Run", width=170 if is_phone() else 300),
            "Measured": number(
                "Measured", width=84, format="%.2f GiB", help="The measured peak, allocated unless it says reserved"
            ),
            **{
                name: number(name, width=84, help="The error of the peak; negative is too low")
                for name in BASIS_NAMES.values()
            },
            "Inside": st.column_config.TextColumn("Inside", width=60),
            "Open": st.column_config.LinkColumn("Open", width=84, display_text="in History", help="The run in full"),
        },
    )
    st.caption("The eye above the table shows more columns: With, Origin.")
    ticked = event["selection"]["rows"]
    return worst[ticked[0]] if ticked and ticked[0] < len(worst) else None


def one_run_view(graded: Sequence[Graded], chosen: Graded | None) -> None:
    """Draw one run, the selected one or one chosen here, with the prediction of each basis.

    The stages are drawn if they were measured.
    """
    st.subheader("One run, stage by stage", anchor=False)
    offered = graded[:MOST_SHOWN]
    if chosen is None:
        first = next((index for index, one in enumerate(offered) if one.stages), 0)
        chosen = st.selectbox(
            "Run",
            offered,
            index=first,
            format_func=lambda one: f"{run_name(one)}, {one.observation.created_at[:10]}",
            key="one-run",
            help="Newest first. Select one of the worst runs above to see that run instead.",
        )
    else:
        st.markdown(plain(run_name(chosen)))
    if chosen is None:
        return
    low, high = chosen.interval_bytes
    predicted = "; ".join(
        f"{BASIS_NAMES[basis].lower()} {gib(chosen.predicted[basis])} ({off_words(chosen.error(basis))})"
        for basis in reversed(GRADED_BASES)
    )
    notes = ", ".join([versions_words(chosen), *circumstances(chosen)])
    st.caption(
        typeset(plain(f"Measured {gib(chosen.measured_bytes)} {chosen.peak}, with {notes}; {predicted}. "))
        + f"The interval is from {gib(low)} to {gib(high)}."
    )
    if chosen.stages:
        stages_chart(chosen)
    else:
        st.caption("This run has no peaks of its stages: reference runs have none, and Verify measures each stage.")
