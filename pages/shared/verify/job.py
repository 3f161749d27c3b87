"""Draw a job: its progress, a button to cancel it, and its result. Its id in the address survives a reload."""

import streamlit as st

from cache.exchange.lines import line_of
from cache.jobs.job import ENDED, JobView
from cache.jobs.queue import Jobs
from cache.records import Measurement
from pages.shared.frame import session
from pages.shared.frame.escape import plain, sentence
from pages.shared.guard.rights import refused
from pages.shared.history.run import PHASE_NAMES, measurement_view
from planner.cards.card import emulated_name

JOB_KEY = "job"
POLL_S = 0.5
_HISTORY, _ACCURACY = "pages/2_History.py", "pages/3_Accuracy.py"


def _phase_line(view: JobView) -> str:
    """Say what the job does, and how much time is left."""
    if view.state == "queued":
        waiting = f"{view.ahead} job{'' if view.ahead == 1 else 's'} ahead" if view.ahead else "starting"
        return f"Queued: {waiting}"
    name = view.steps_text or PHASE_NAMES.get(view.phase or "", view.phase or "Starting")
    if view.detail:
        name += f": {view.detail.replace('_', ' ')}"
    return f"{name}, {view.left_text}" if view.left_text else f"{name}, {view.phase_seconds:.0f} s so far"


def _progress(jobs: Jobs, job_id: str) -> None:
    view = jobs.view(job_id)
    if view is None or view.ended:
        # The whole page is run once more: it shows the result and stops polling.
        st.rerun()
        return
    with st.container(border=True):
        with st.container(horizontal=True, vertical_alignment="center"):
            described = emulated_name(view.request.describe(), view.device.emulated_bytes)
            st.markdown(f"**Running:** {described}", width="stretch")
            if st.button("Cancel", icon=":material/stop_circle:", key=f"cancel-{job_id}") and not refused():
                jobs.cancel(job_id)
        st.progress(view.fraction, _phase_line(view))
        passed = [f"{PHASE_NAMES.get(name, name)} {seconds:.1f} s" for name, seconds in view.phases]
        st.caption(" → ".join(passed) + f"{' · ' if passed else ''}{view.total_seconds:.0f} s in total")


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
        with st.container(horizontal=True):
            st.page_link(
                _HISTORY,
                label="This run in History",
                icon=":material/history:",
                query_params={"run": measurement.measurement_id},
            )
            st.page_link(_ACCURACY, label="Errors of all runs in Accuracy", icon=":material/query_stats:")
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


def running_view(jobs: Jobs) -> bool:
    """Draw the progress of a job, and return whether there is one.

    The job in the address comes before the first in the queue.
    """
    active = [view.job_id for view in jobs.active()]
    if not active:
        return False
    asked = st.query_params.get(JOB_KEY)
    st.fragment(_progress, run_every=POLL_S)(jobs, asked if asked in active else active[0])
    return True


def result_view(jobs: Jobs) -> None:
    """Draw the result of the job in the address."""
    job_id = st.query_params.get(JOB_KEY)
    if job_id is None:
        return
    view = jobs.view(job_id)
    if view is None:
        _of_another_server(job_id)
    elif not view.ended:
        # Its progress is at the top of the page.
        return
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
