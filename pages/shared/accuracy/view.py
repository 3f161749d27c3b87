"""How far off predictions were: at a glance, by group, the worst of them, and one run stage by stage."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import streamlit as st

from pages.shared.accuracy.charts import residual_chart, scatter_chart, stages_chart
from pages.shared.accuracy.gpus import link_to
from pages.shared.frame.chrome import is_phone
from pages.shared.frame.escape import plain
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
    """Name the group of a run; a run with the reserved peak alone has a group of its own."""
    name = GROUPINGS[by](one)
    return name if one.peak == "allocated" else f"{name}, reserved"


def percent(value: float) -> str:
    """Write a median error with as many digits as show it."""
    return median_words(value) if value < 0.1 else f"{100 * value:.0f} %"


def whole_view(graded: Sequence[Graded]) -> None:
    """Draw what runs of whole pipelines show, and nothing of halves of the VAE."""
    whole = [one for one in graded if one.is_whole]
    st.header("Whole pipelines", anchor=False, divider="gray")
    if not whole:
        st.info("No whole pipeline was measured: only halves of the VAE, below.", icon=":material/query_stats:")
        return
    headline(whole, WHOLE)
    charts_view(whole)
    confirmed_view(graded)
    st.subheader("By group", anchor=False)
    groups_view(whole, group_control())
    chosen = worst_view(whole)
    one_run_view(whole, chosen)


def halves_view(graded: Sequence[Graded]) -> None:
    """Draw what runs of one half of the VAE show, where there are any."""
    halves = [one for one in graded if not one.is_whole]
    if not halves:
        return
    st.header("Halves of the VAE, run alone", anchor=False, divider="gray")
    st.caption(
        "A benchmark ran the VAE's encoder or decoder without the pipeline around it; peaks are above what stood "
        "allocated before. They confirm the VAE's kernels, and no figure above counts them."
    )
    headline(halves, HALVES)
    charts_view(halves)
    groups_view(halves, st.session_state.get("by") or next(iter(GROUPINGS)))


def headline(graded: Sequence[Graded], counted: tuple[str, str]) -> None:
    """Draw the number of runs of one kind, the median error of each basis, and how many runs their intervals hold.

    The figures are of allocated peaks, where there are any: no median is taken over both kinds of peaks.
    """
    allocated, reserved = (tally(one for one in graded if one.peak == peak) for peak in PEAKS)
    told = allocated or reserved
    assert told is not None, "there are no runs to tell of"
    everything, inside = group_of("all", told.runs), told.inside
    published = sum(one.observation.is_reference for one in told.runs)
    with st.container(horizontal=True, gap="large"):
        st.metric(
            "Runs",
            f"{len(told.runs):,}",
            help=f"{published:,} of them published, {len(told.runs) - published:,} your own.",
        )
        for basis in reversed(GRADED_BASES):
            st.metric(
                f"{BASIS_NAMES[basis]} off by",
                percent(everything.error[basis]),
                help=f"Median of how far the {told.runs[0].peak} peak was off, to either side. To one side: "
                f"{off_words(everything.bias[basis])}.",
            )
        st.metric(
            "Inside interval",
            f"{100 * inside / len(told.runs):.0f} %",
            help=f"{inside:,} of {len(told.runs):,} measured peaks lie in the interval of the answer without that run; "
            f"{100 * NOMINAL:.0f} % should.",
        )
    # A median must not hide the run that was missed.
    worst = max(graded, key=lambda one: abs(one.error("calibrated")))
    st.caption(
        f"{plain(kinds_words(allocated, reserved, *counted))}. At worst: {plain(run_name(worst))}. Calibrated values "
        f"and intervals leave out the run itself, and hold at {100 * NOMINAL:.0f} %."
    )


def confirmed_view(graded: Sequence[Graded]) -> None:
    """Draw which conditions runs confirm on each compute capability; what nobody measured is seen to be empty."""
    st.subheader("What is confirmed", anchor=False)
    st.caption(
        f"Runs of whole pipelines that the dry run meets within {100 * CONFIRMED_WITHIN:.1f} %, of all that have the "
        "condition. What is not measured is planned for, and nobody has checked it."
    )
    found = confirmed(graded, is_whole=True)
    measured = [one for one in found if one.gpus]
    if is_phone():
        # Five columns of text are a word wide there.
        st.markdown("\n".join(line for one in measured for line in _confirmed_lines(one)))
    else:
        st.table(
            [
                {
                    "Compute capability": one.title,
                    "Measured on": ", ".join(one.gpus),
                    **{f"{state[:1].upper()}{state[1:]}": ", ".join(one.words(state)) for state in STATES},
                }
                for one in measured
            ],
            hide_index=True,
            alt="Which conditions runs of whole pipelines confirm, by compute capability",
        )
    if empty := [one.title for one in found if not one.gpus]:
        st.caption(f"Nothing is measured on compute capability {', '.join(empty)}.")


def _confirmed_lines(one: Confirmed) -> list[str]:
    """One compute capability as a list in Markdown."""
    states = [f"  - {state}: {plain(', '.join(words))}" for state in STATES if (words := one.words(state))]
    return [f"- **{plain(one.title)}** ({plain(', '.join(one.gpus))})", *states]


def _shown(graded: Sequence[Graded]) -> Sequence[Graded]:
    if len(graded) > MOST_SHOWN:
        st.caption(f"The newest {MOST_SHOWN:,} of {len(graded):,} runs are drawn; all of them are counted below.")
    return graded[:MOST_SHOWN]


def charts_view(graded: Sequence[Graded]) -> None:
    """Predicted against measured, and below how far each is off."""
    shown = _shown(graded)
    points = [
        {
            "run": run_name(one),
            "basis": BASIS_NAMES[basis],
            "measured": gib_value(one.measured_bytes),
            "predicted": gib_value(one.predicted[basis]),
            "off": 100 * one.error(basis),
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
    """Draw the choice of what runs are grouped by."""
    return st.segmented_control(
        "Group by",
        list(GROUPINGS),
        default="GPU",
        required=True,
        key="by",
        bind="query-params",
        help="Stage: the one in which the run peaked. Size: pixels of all its images together. Reserved: runs of which "
        "the reserved peak alone was published.",
    )


def groups_view(graded: Sequence[Graded], by: str) -> None:
    """Draw the error of each basis by what the user groups by."""
    percents = st.column_config.NumberColumn
    rows = [
        {
            by: group.name,
            "Runs": group.count,
            **{BASIS_NAMES[basis]: 100 * group.error[basis] for basis in GRADED_BASES},
            # As shown, so that what rounds to nothing has no sign.
            "Bias": round(100 * group.bias["calibrated"], 2) + 0.0,
            "Inside": 100 * group.covered,
        }
        for group in groups(graded, lambda one: group_name(one, by))
    ]
    st.dataframe(
        rows,
        hide_index=True,
        height="content",
        alt=f"Median error of each basis by {by.lower()}",
        column_config={
            **{
                name: percents(name, format="%.2f %%", help=f"{name}: median error of the peak, to either side")
                for name in BASIS_NAMES.values()
            },
            "Bias": percents(
                "Bias", format="%+.2f %%", help="Calibrated: median error with its sign, negative is too low"
            ),
            "Inside": percents(
                "Inside",
                format="%.0f %%",
                help=f"Measured peaks inside their interval; {100 * NOMINAL:.0f} % should be",
            ),
        },
    )


def worst_view(graded: Sequence[Graded]) -> Graded | None:
    """Draw the runs that the calibrated answer missed most; return the ticked one."""
    st.subheader("Worst runs", anchor=False)
    worst = sorted(graded, key=lambda one: -abs(one.error("calibrated")))[:_WORST]
    rows = [
        {
            "Run": run_name(one),
            "Measured": gib_value(one.measured_bytes),
            **{BASIS_NAMES[basis]: round(100 * one.error(basis), 2) + 0.0 for basis in GRADED_BASES},
            "Inside": "yes" if one.is_covered else "no",
            "With": ", ".join([versions_words(one), *circumstances(one)]),
            "Origin": "published" if one.observation.is_reference else "history",
            "Open": link_to(one),
        }
        for one in worst
    ]
    number = st.column_config.NumberColumn
    event = st.dataframe(
        rows,
        hide_index=True,
        height="content",
        on_select="rerun",
        selection_mode="single-row",
        key="worst",
        alt="The runs whose peak the calibrated answer missed most",
        column_config={
            "Measured": number(
                "Measured", format="%.2f GiB", help="The measured peak, allocated unless it says reserved"
            ),
            **{
                name: number(name, format="%+.2f %%", help="Off by; negative is too low")
                for name in BASIS_NAMES.values()
            },
            "Open": st.column_config.LinkColumn("Open", display_text="in History", help="The run in full"),
        },
    )
    ticked = event["selection"]["rows"]
    return worst[ticked[0]] if ticked and ticked[0] < len(worst) else None


def one_run_view(graded: Sequence[Graded], chosen: Graded | None) -> None:
    """One run: what each basis says of it, by stage where stages were measured; the ticked one, or one picked here."""
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
            help="Newest first. Ticking one of the worst runs above shows that one.",
        )
    else:
        st.markdown(plain(run_name(chosen)))
    if chosen is None:
        return
    low, high = chosen.interval_bytes
    said = "; ".join(
        f"{BASIS_NAMES[basis].lower()} {gib(chosen.predicted[basis])} ({off_words(chosen.error(basis))})"
        for basis in reversed(GRADED_BASES)
    )
    notes = ", ".join([versions_words(chosen), *circumstances(chosen)])
    st.caption(
        plain(f"Measured {gib(chosen.measured_bytes)} {chosen.peak}, with {notes}; {said}. ")
        + f"The interval is from {gib(low)} to {gib(high)}."
    )
    if chosen.stages:
        stages_chart(chosen)
    else:
        st.caption("Its stages were not measured by themselves: published runs do not say, and Verify measures each.")
