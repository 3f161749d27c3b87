"""Draw one run in full, with buttons to rerun, plan or delete it."""

from __future__ import annotations

from typing import Any

import streamlit as st

from cache.records import Measurement
from pages.shared.controls.capacity import CAPACITY_KEY
from pages.shared.frame import session
from pages.shared.frame.escape import plain, sentence
from pages.shared.frame.plan_state import plan
from pages.shared.guard.rights import demand
from pages.shared.history.run import measurement_view, what, when
from pages.shared.history.runs import Runs
from pages.shared.history.table import choose_runs, chosen_runs
from planner.errors import PlannerError
from planner.request import FIELDS, GenerationRequest
from planner.units import exact_size


def address_of(request: GenerationRequest) -> dict[str, Any]:
    """Return the address of the plan with this request, as names with text values.

    Fields at their defaults are included: without them the session's values would stay.
    """
    values = plan() | {field.name: getattr(request, field.name) for field in FIELDS}
    return {key: value if isinstance(value, list) else str(value) for key, value in values.items()}


def delete(run: Measurement) -> str | None:
    """Delete a run; return None, or why it could not be deleted."""
    store, _ = session.store()
    try:
        demand()
        if store:
            store.delete_measurement(run.measurement_id)
    except PlannerError as error:
        return f"{sentence(str(error))} Nothing was deleted."
    return None


@st.dialog("Delete this run?")
def confirm_delete(run: Measurement, others: list[str]) -> None:
    """Ask before deleting a run."""
    at = when(run)
    st.markdown(f"{plain(what(run))} on {plain(run.environment.card_name)}, {at} UTC. This cannot be undone.")
    problem = None
    with st.container(horizontal=True):
        # The safe button comes first, and is the one that stands out.
        if st.button("Keep the run", type="primary", key="keep"):
            st.rerun()
        if st.button(f"Delete the run of {at}", icon=":material/delete:", key="confirm-delete"):
            problem = delete(run)
            if problem is None:
                choose_runs(others)
                st.rerun()
    if problem:
        st.error(problem, icon=":material/error:")


def _actions(runs: Runs, run: Measurement) -> None:
    with st.container(horizontal=True):
        if run.scope == "pipeline":
            address, emulated = address_of(run.request), run.environment.emulated_bytes
            if st.button(
                "Rerun", icon=":material/replay:", key="rerun", help="Verify this request again on this machine."
            ):
                # Without this, Verify would answer from the history.
                st.session_state["force"] = True
                # It is set even if empty, because Verify may still have an earlier one.
                capacity = st.session_state[CAPACITY_KEY] = "" if emulated is None else exact_size(emulated)
                at = {CAPACITY_KEY: capacity} if capacity else {}
                st.switch_page("pages/1_Verify.py", query_params=address | at)
            if st.button(
                "Plan", icon=":material/straighten:", key="plan-it", help="See which GPUs can run this request."
            ):
                st.switch_page("streamlit_app.py", query_params=address)
        if run.origin == "reference":
            st.caption("Reference runs ship with the planner and cannot be deleted.", width="content")
        elif st.button("Delete", icon=":material/delete:", key="delete"):
            confirm_delete(run, [other for other in chosen_runs(runs) if other != run.measurement_id])


def details(runs: Runs, run: Measurement) -> None:
    """Draw the run in full, and its buttons."""
    with st.container(border=True):
        measurement_view(run)
        _actions(runs, run)
