"""Draw a job: its progress, a button to cancel it, and its result. Its id in the address survives a reload."""

import streamlit as st

from cache.exchange.lines import line_of
from cache.jobs.job import ENDED, JobView
from cache.jobs.queue import Jobs
from cache.records import Measurement
from pages.shared.frame import session
from pages.shared.frame.escape import plain, sentence
from pages.shared.history.run import PHASE_NAMES, measurement_view
from planner.cards.card import emulated_name
from planner.request import GenerationRequest

POLL_S = 0.5


def _phase_line(view: JobView) -> str:
    if view.state == "queued":
        waiting = f"{view.ahead} job{'' if view.ahead == 1 else 's'} ahead" if view.ahead else "starting"
        return f"Queued: {waiting}"
    name = PHASE_NAMES.get(view.phase or "", view.phase or "Starting")
    if view.phase == "unet" and view.step is not None:
        name += f", step {view.step} of {view.of}"
    elif view.detail:
        name += f": {view.detail.replace('_', ' ')}"
    return f"{name} · {view.phase_seconds:.0f} s in this phase, {view.total_seconds:.0f} s in total"


def _progress(jobs: Jobs, job_id: str) -> None:
    view = jobs.view(job_id)
    if view is None or view.ended:
        # The whole page is run once more: it shows the result and stops polling.
        st.rerun()
        return
    with st.container(border=True):
        st.markdown(f"**{emulated_name(view.request.describe(), view.device.emulated_bytes)}**")
        st.progress(view.fraction, _phase_line(view))
        passed = [f"{PHASE_NAMES.get(name, name)} {seconds:.1f} s" for name, seconds in view.phases]
        st.caption(" → ".join(passed) if passed else "Each phase is listed here as it ends.")
        if st.button("Cancel", icon=":material/stop_circle:", key=f"cancel-{job_id}"):
            jobs.cancel(job_id)


def _of_another_server(job_id: str) -> None:
    """Draw a job of another server: from before a restart, or of another planner."""
    row = session.job_row(job_id)
    if row is None:
        st.warning("The job in this link is not in the history.", icon=":material/link_off:")
    elif row["state"] in ENDED:
        _result(row["measurement_id"] or "")
    else:
        st.info(
            "This job belongs to another planner on this machine. Reload the page to look again.",
            icon=":material/hourglass:",
        )


def _result(measurement_id: str) -> None:
    measurement = session.measurement(measurement_id)
    if measurement is None:
        st.info("The run of this job was deleted from the history.", icon=":material/delete:")
        return
    with st.container(border=True):
        measurement_view(measurement)


def _unkept(run: Measurement, reason: str) -> None:
    """Draw a run that the history could not keep, and a download of its line for an import."""
    st.error(
        f"{sentence(reason)} The run is not lost yet: download it, and import it on History once the history can be "
        "written.",
        icon=":material/error:",
    )
    st.download_button(
        "Download the run",
        f"{line_of(run)}\n",
        f"will-it-fit-run-{run.measurement_id[:8]}.jsonl",
        "application/jsonl",
        key="download-unkept",
        icon=":material/download:",
        on_click="ignore",
    )
    with st.container(border=True):
        measurement_view(run)


def job_view(jobs: Jobs, request: GenerationRequest) -> None:
    """Draw the job in the address, else the one that is running, else what Verify will measure."""
    active = jobs.active()
    job_id = st.query_params.get("job") or (active[0].job_id if active else None)
    if job_id is None:
        st.caption(f"No run yet. **Verify** will measure {request.describe()}.")
        return
    view = jobs.view(job_id)
    if view is None:
        _of_another_server(job_id)
    elif not view.ended:
        st.fragment(_progress, run_every=POLL_S)(jobs, job_id)
    elif view.unkept is not None:
        _unkept(view.unkept, str(view.reason))
    elif view.measurement_id is None:
        st.error(plain(str(view.reason)), icon=":material/error:")
    else:
        if view.state == "cached":
            st.info(
                "This result is from the history: the request was measured before. Tick **Measure again** to repeat it."
            )
        _result(view.measurement_id)
