"""Choose the weights of a run, say how long it takes, and start it."""

from uuid import uuid4

import streamlit as st

from cache.history.location import HistoryError
from cache.jobs.estimate import about, expected_text
from cache.jobs.queue import Jobs
from cache.machine.device import Device, Weights
from cache.predictions import predictions_for
from cache.records import Prediction
from pages.shared.frame import session
from pages.shared.frame.escape import plain, sentence
from pages.shared.frame.plan_state import PUBLISHED_KEY, plan
from pages.shared.guard.rights import demand
from pages.shared.verify.job import JOB_KEY
from pages.shared.verify.short_run import short_run
from planner.errors import NoProgram, PlannerError
from planner.request import GenerationRequest


def choose_weights(request: GenerationRequest, device: Device) -> Weights:
    """Draw the choice of weights and return it.

    A rehearsal has no choice, because real weights would take the same memory.
    """
    if not device.card:
        return "synthetic"
    facts = session.facts()
    # The Hub's repository has these components; all others are made.
    names = [name for name in facts.parameters if name != "safety_checker" or request.safety_checker]
    size = f"{sum(facts.weights_bytes(name) for name in names) / 1e9:.1f} GB"
    chosen = st.segmented_control(
        "Weights",
        ("synthetic", "hub"),
        default="synthetic",
        required=True,
        key="weights",
        format_func=lambda name: f"hub (downloads {size})" if name == "hub" else name,
        help="synthetic: random weights of the real shapes and sizes, without a download. hub: the real weights, "
        f"{size} in float16, downloaded once.",
    )
    return "hub" if chosen == "hub" else "synthetic"


def run_buttons(
    jobs: Jobs | None, request: GenerationRequest, device: Device, weights: Weights, *, force: bool, is_possible: bool
) -> GenerationRequest | None:
    """Draw the buttons that start a run, and return the request of the pressed one.

    The time that each run takes is below them.
    """
    shorter = _shorter(request) if is_possible else None
    pressed = None
    with st.container(horizontal=True, vertical_alignment="center"):
        if st.button(
            "Verify",
            type="primary",
            icon=":material/play_arrow:",
            disabled=jobs is None or not is_possible,
            key="verify",
        ):
            pressed = request
        if shorter and st.button(
            f"Verify {shorter.steps} step{'' if shorter.steps == 1 else 's'} (same peak)",
            icon=":material/fast_forward:",
            disabled=jobs is None,
            key="verify-short",
        ):
            pressed = shorter
    if jobs is not None and is_possible:
        try:
            lines = [_time(jobs, request, device, weights, force=force)]
            if shorter:
                lines.append(_reason(shorter, request, _short_time(jobs, shorter, device, weights, force=force)))
        except HistoryError as error:
            st.error(sentence(str(error)), icon=":material/error:")
        else:
            st.caption("  \n".join(lines))
    return pressed


def _shorter(request: GenerationRequest) -> GenerationRequest | None:
    """Return the shortest run that shows the request's peaks.

    It is None if no run is shorter, or if there is no memory program to find it by.
    """
    library, _ = session.library()
    try:
        return short_run(library, request) if library else None
    except NoProgram:
        return None


def _time(jobs: Jobs, request: GenerationRequest, device: Device, weights: Weights, *, force: bool) -> str:
    if not force and jobs.is_measured(request, device, weights):
        return "This request was measured before: **Verify** shows that run at once."
    time = plain(expected_text(jobs.estimate(request, device, weights)))
    return f"**Verify** measures {request.describe()}. {time}"


def _short_time(jobs: Jobs, shorter: GenerationRequest, device: Device, weights: Weights, *, force: bool) -> str:
    if not force and jobs.is_measured(shorter, device, weights):
        return " (measured before)"
    expected = jobs.estimate(shorter, device, weights)
    return f" ({about(expected.total_s)})" if expected else ""


def _reason(shorter: GenerationRequest, request: GenerationRequest, time: str) -> str:
    return (
        f"By the dry run, {shorter.steps} steps{time} reach the same peaks as {request.steps}: the scheduler then has "
        "all the noise predictions that it keeps, so further steps only take time."
    )


def _asker() -> str:
    """Return a name for this session, by which the queue counts its waiting runs."""
    return st.session_state.setdefault("asker", uuid4().hex)


def _predict(jobs: Jobs, request: GenerationRequest, device: Device) -> tuple[Prediction, ...]:
    library, _ = session.library()
    evidence = session.evidence(plan().get(PUBLISHED_KEY, True)).evidence
    return predictions_for(request, device, session.facts(), jobs.worker_pid, library, evidence)


def stopped_view(jobs: Jobs) -> None:
    """Offer to queue the runs again that ended with a planner, or to give them up."""
    try:
        stopped = jobs.store.stopped_jobs()
    except HistoryError:
        # The page has said what is wrong with the history.
        return
    if not stopped:
        return
    runs = f"{len(stopped)} run{'' if len(stopped) == 1 else 's'}"
    with st.container(border=True):
        st.markdown(f"**{runs} ended with the planner** before they were measured. The first of them:")
        st.caption(plain(stopped[0].request.describe()))
        with st.container(horizontal=True):
            again = st.button(f"Queue {runs} again", icon=":material/replay:", key="queue-again")
            if st.button("Give them up", icon=":material/delete_sweep:", key="give-up"):
                jobs.store.settle_stopped(job.job_id for job in stopped)
                st.rerun()
    if again:
        try:
            for job in stopped:
                jobs.queue_again(job, predict=lambda request, device: _predict(jobs, request, device), asker=_asker())
        except PlannerError as error:
            # The rest stays on the list, and the button is there again.
            st.error(sentence(str(error)), icon=":material/error:")
            return
        st.rerun()


def start(jobs: Jobs, request: GenerationRequest, device: Device, weights: Weights, *, force: bool) -> None:
    """Queue the run, and put its id into the address so that a reload finds it again."""
    try:
        demand()
        job_id = jobs.submit(
            request,
            device,
            weights=weights,
            predict=lambda: _predict(jobs, request, device),
            force=force,
            asker=_asker(),
        )
    except PlannerError as error:
        st.error(sentence(str(error)), icon=":material/error:")
        return
    st.query_params[JOB_KEY] = job_id
    # The progress belongs at the top of the page.
    st.rerun()
