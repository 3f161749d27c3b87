"""History: measured runs, each with what had been predicted of it."""

import pandas as pd
import streamlit as st

from cache.compare import peak_error
from cache.records import Measurement
from cache.versions import installed
from pages.shared import calls
from pages.shared.chrome import history_notice, open_page
from pages.shared.run_view import measurement_view
from planner.units import gib_value

open_page("History", "Every measured run, and how far each prediction was off.")
history_notice()

_HELP = {
    "Allocated": "The most that tensors and workspaces took at once, GiB",
    "Reserved": "What torch's caching allocator held at most, GiB",
    "Dry run off by": "The dry run's allocated peak against the measured one: negative was too low",
    "Formula off by": "The formula's allocated peak against the measured one: negative was too low",
    "Versions": "stale: measured with other versions than those installed now",
}


def _percent(error: float | None) -> float | None:
    # As shown, so that what rounds to nothing has no sign.
    return None if error is None else round(error * 100, 1) + 0.0


def row_of(measurement: Measurement, versions: dict[str, str]) -> dict[str, object]:
    """The run as one line of the table."""
    request, measured = measurement.request, measurement.measured
    errors = {p.basis: peak_error(measurement, p) for p in measurement.predictions}
    return {
        "When, UTC": pd.Timestamp(measurement.created_at),
        "Outcome": measured.outcome,
        "Card": measurement.environment.card,
        "Task": request.task,
        "Width": request.effective_width,
        "Height": request.effective_height,
        "Batch": request.batch,
        "Steps": request.steps,
        "Allocated": None if measured.peak_allocated_bytes is None else gib_value(measured.peak_allocated_bytes),
        "Reserved": None if measured.peak_reserved_bytes is None else gib_value(measured.peak_reserved_bytes),
        "Dry run off by": _percent(errors.get("dry-run")),
        "Formula off by": _percent(errors.get("formula")),
        "Weights": measurement.environment.weights.partition(":")[0],
        "Versions": "stale" if measurement.is_stale(versions) else "",
    }


def filtered(found: list[Measurement]) -> list[Measurement]:
    """Draw the filters; the runs that pass them all."""
    with st.container(horizontal=True):
        chosen = {}
        for name, of in (
            ("Card", lambda run: run.environment.card),
            ("Task", lambda run: run.request.task),
            ("Outcome", lambda run: run.measured.outcome),
        ):
            options = sorted({of(run) for run in found})
            chosen[of] = st.multiselect(name, options, key=f"filter-{name}", placeholder="All", width=260)
    return [run for run in found if all(not values or of(run) in values for of, values in chosen.items())]


def table(found: list[Measurement]) -> str | None:
    """Draw the runs; the id of the chosen one."""
    number = st.column_config.NumberColumn
    frame = pd.DataFrame([row_of(run, installed()) for run in found])
    # An all-empty column is no number to pandas, and would be shown as None.
    for name in ("Allocated", "Reserved", "Dry run off by", "Formula off by"):
        frame[name] = frame[name].astype("float64")
    event = st.dataframe(
        frame,
        hide_index=True,
        placeholder="–",
        on_select="rerun",
        selection_mode="single-row",
        key="runs",
        alt="Measured runs, newest first",
        column_config={
            "When, UTC": st.column_config.DatetimeColumn("When, UTC", format="YYYY-MM-DD HH:mm"),
            "Allocated": number("Allocated", format="%.2f GiB", help=_HELP["Allocated"]),
            "Reserved": number("Reserved", format="%.2f GiB", help=_HELP["Reserved"]),
            "Dry run off by": number("Dry run off by", format="%+.1f %%", help=_HELP["Dry run off by"]),
            "Formula off by": number("Formula off by", format="%+.1f %%", help=_HELP["Formula off by"]),
            "Versions": st.column_config.TextColumn("Versions", help=_HELP["Versions"]),
        },
    )
    rows = event["selection"]["rows"]
    return found[rows[0]].measurement_id if rows and rows[0] < len(found) else None


@st.dialog("Delete this run?")
def confirm_delete(measurement: Measurement) -> None:
    """Ask before a run is gone for good."""
    st.markdown(f"{measurement.request.describe()} on {measurement.environment.card}. It cannot be brought back.")
    with st.container(horizontal=True):
        if st.button("Delete it", type="primary", icon=":material/delete:", key="confirm-delete"):
            store, _ = calls.store()
            if store:
                store.delete_measurement(measurement.measurement_id)
            st.query_params.pop("run", None)
            st.session_state.pop("runs", None)
            st.rerun()
        if st.button("Keep it", key="keep"):
            st.rerun()


def details(measurement_id: str) -> None:
    """The chosen run in full, with what can be done with it."""
    measurement = calls.measurement(measurement_id)
    if measurement is None:
        st.warning("The run in this link is not in the history.", icon=":material/link_off:")
        return
    with st.container(border=True):
        measurement_view(measurement)
        if st.button("Delete", icon=":material/delete:", key="delete"):
            confirm_delete(measurement)


found = calls.measurements()
if not found:
    st.info(
        "No run was measured yet. **Verify** measures one on the attached GPU, or rehearses one on the CPU; "
        "`python -m planner verify` does the same in a terminal.",
        icon=":material/history:",
    )
else:
    shown = filtered(found)
    st.caption(
        f"{len(shown)} of {len(found)} run{'' if len(found) == 1 else 's'}. Tick one on its left to see it in full."
    )
    selected = table(shown) if shown else None
    if selected:
        st.query_params["run"] = selected
    elif st.session_state.get("selected"):
        # Unticked, or filtered away: its details go with it. A link's run stays.
        st.query_params.pop("run", None)
    st.session_state["selected"] = selected
    if run := selected or st.query_params.get("run"):
        details(run)
