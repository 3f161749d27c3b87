"""How far off predictions were: at a glance, by group, the worst of them, and one run stage by stage."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import streamlit as st

from pages.shared.accuracy_charts import residual_chart, scatter_chart, stages_chart
from pages.shared.words import plain
from planner.calibrate import NOMINAL
from planner.components import STAGE_NAMES
from planner.grading import GRADED_BASES, Graded, group_of, groups, size_class
from planner.units import gib, gib_value

# Charts and tables of more runs than this show the newest of them.
MOST_SHOWN = 600
_WORST = 10

GROUPINGS: dict[str, Callable[[Graded], str]] = {
    "Card": lambda one: one.observation.card_name,
    "Stage": lambda one: STAGE_NAMES[one.peak_stage],
    "Size": lambda one: size_class(one.observation.request),
    "Options": lambda one: one.observation.cell.options,
    "What ran": lambda one: one.observation.request.task if is_whole(one) else one.observation.scope,
    "Versions": lambda one: one.observation.versions,
}
BASIS_NAMES = {"formula": "Formula", "dry-run": "Dry run", "calibrated": "Calibrated"}


def is_whole(one: Graded) -> bool:
    """Whether the whole pipeline ran, and not a half of the VAE alone."""
    return one.observation.scope == "pipeline"


def run_name(one: Graded) -> str:
    """The run in a few words."""
    observation = one.observation
    request = observation.request
    what = request.task if is_whole(one) else observation.scope
    size = f"{request.effective_width}×{request.effective_height}"
    batch = f", batch {request.batch}" if request.batch > 1 else ""
    options = "" if observation.cell.options == "plain" else f", {observation.cell.options}"
    return f"{what} {size}{batch}{options} on {observation.card_name}"


def percent(value: float) -> str:
    """A median error; as many digits as it takes to see it."""
    return f"{value:.2%}" if value < 0.1 else f"{value:.0%}"


def headline(graded: Sequence[Graded]) -> None:
    """Runs, the median error of each basis, and how many runs their intervals hold."""
    everything = group_of("all", graded)
    published = sum(one.observation.is_reference for one in graded)
    inside = sum(one.is_covered for one in graded)
    with st.container(horizontal=True, gap="large"):
        st.metric(
            "Runs", f"{len(graded):,}", help=f"{published:,} of them published, {len(graded) - published:,} your own."
        )
        for basis in reversed(GRADED_BASES):
            st.metric(
                f"{BASIS_NAMES[basis]} off by",
                percent(everything.error[basis]),
                help=f"Median of how far the allocated peak was off, to either side. To one side: "
                f"{everything.bias[basis]:+.2%}.",
            )
        st.metric(
            "Inside interval",
            f"{inside / len(graded):.0%}",
            help=f"{inside:,} of {len(graded):,} measured peaks lie in the interval that the other runs give; "
            f"{NOMINAL:.0%} should.",
        )
    # A median of nothing must not hide the run that was missed.
    worst = max(graded, key=lambda one: abs(one.error("calibrated")))
    st.caption(
        f"At worst the calibrated peak was off by {worst.error('calibrated'):+.2%}: {plain(run_name(worst))}. "
        f"Calibrated values and intervals come from the other runs alone, and hold at {NOMINAL:.0%}. "
        f"Of these runs {published:,} {'was' if published == 1 else 'were'} published by others; their own page on "
        "History names each source."
    )


def _shown(graded: Sequence[Graded]) -> Sequence[Graded]:
    if len(graded) > MOST_SHOWN:
        st.caption(f"The newest {MOST_SHOWN:,} of {len(graded):,} runs are drawn; all of them are counted below.")
    return graded[:MOST_SHOWN]


def scatter_view(graded: Sequence[Graded]) -> None:
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
            "low": gib_value(one.calibrated.allocated[0]),
            "high": gib_value(one.calibrated.allocated[1]),
        }
        for one in shown
    ]
    scatter_chart(points, intervals)
    residual_chart(points)


def groups_view(graded: Sequence[Graded]) -> None:
    """The error of each basis by what the user groups by."""
    st.subheader("By group", anchor=False)
    by = st.segmented_control(
        "Group by",
        list(GROUPINGS),
        default="Card",
        required=True,
        key="by",
        bind="query-params",
        help="Stage: the one in which the run peaked. Size: pixels of all its images together.",
    )
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
        for group in groups(graded, GROUPINGS[by])
    ]
    st.dataframe(
        rows,
        hide_index=True,
        height="content",
        alt=f"Median error of each basis by {by.lower()}",
        column_config={
            **{
                name: percents(
                    name, format="%.2f %%", help=f"{name}: median error of the allocated peak, to either side"
                )
                for name in BASIS_NAMES.values()
            },
            "Bias": percents(
                "Bias", format="%+.2f %%", help="Calibrated: median error with its sign, negative is too low"
            ),
            "Inside": percents(
                "Inside", format="%.0f %%", help=f"Measured peaks inside their interval; {NOMINAL:.0%} should be"
            ),
        },
    )


def worst_view(graded: Sequence[Graded]) -> Graded | None:
    """The runs that the calibrated answer missed most; the one that is ticked."""
    st.subheader("Worst runs", anchor=False)
    worst = sorted(graded, key=lambda one: -abs(one.error("calibrated")))[:_WORST]
    rows = [
        {
            "Run": run_name(one),
            "Measured": gib_value(one.measured_bytes),
            **{BASIS_NAMES[basis]: round(100 * one.error(basis), 2) + 0.0 for basis in GRADED_BASES},
            "Inside": "yes" if one.is_covered else "no",
            "Origin": "published" if one.observation.is_reference else "history",
            "Open": _link(one),
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
        alt="The runs whose allocated peak the calibrated answer missed most",
        column_config={
            "Measured": number("Measured", format="%.2f GiB", help="The measured allocated peak"),
            **{
                name: number(name, format="%+.2f %%", help="Off by; negative is too low")
                for name in BASIS_NAMES.values()
            },
            "Open": st.column_config.LinkColumn("Open", display_text="in History", help="The run in full"),
        },
    )
    ticked = event["selection"]["rows"]
    return worst[ticked[0]] if ticked and ticked[0] < len(worst) else None


def _link(one: Graded) -> str:
    published = "&reference=true" if one.observation.is_reference else ""
    return f"History?run={one.observation.run_id}{published}"


def one_run_view(graded: Sequence[Graded], chosen: Graded | None) -> None:
    """One run stage by stage: the ticked one, or the one picked here."""
    st.subheader("One run, stage by stage", anchor=False)
    staged = [one for one in graded[:MOST_SHOWN] if one.stages]
    if chosen is not None:
        one = chosen
        st.markdown(plain(run_name(one)))
    elif staged:
        one = st.selectbox(
            "Run",
            staged,
            format_func=lambda one: f"{run_name(one)}, {one.observation.created_at[:10]}",
            key="one-run",
            help="Runs whose stages were measured, newest first. Ticking one of the worst runs above shows that one.",
        )
    else:
        st.caption(
            "None of these runs has its stages: published ones do not say. Verify measures each stage by itself, and "
            "they are shown here."
        )
        return
    if one is None:
        return
    low, high = one.calibrated.allocated
    st.caption(
        f"Measured {gib(one.measured_bytes)}; dry run {gib(one.predicted['dry-run'])}, calibrated "
        f"{gib(one.predicted['calibrated'])} (from {gib(low)} to {gib(high)}), formula {gib(one.predicted['formula'])}."
    )
    if one.stages:
        stages_chart(one)
    else:
        st.caption("Its stages were not measured by themselves.")
