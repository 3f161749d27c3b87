"""The Verify page: run the planned request on a GPU of this machine and compare it with the prediction."""

from pathlib import Path

import streamlit as st

from cache.jobs.queue import Jobs
from cache.machine.device import Device, check_runnable
from cache.machine.versions import NotInstalled, missing
from cache.predictions import predictions_for
from pages.shared.controls.capacity import capacity_input
from pages.shared.controls.request import request_controls
from pages.shared.frame import session
from pages.shared.frame.chrome import controls_and_results, history_notice, open_page, programs_notice
from pages.shared.frame.escape import sentence
from pages.shared.frame.plan_state import PUBLISHED_KEY, plan
from pages.shared.verify.device import attached_cards_view, choose_device
from pages.shared.verify.job import job_view
from planner.errors import PlannerError
from planner.report.text import verify_command
from planner.request import GenerationRequest

NOTEBOOK = Path(__file__).parents[1] / "notebooks" / "verify_on_colab.ipynb"

open_page("Verify", "Run the planned request for real, and see how far off the prediction was.")
history_notice()


def start(jobs: Jobs, request: GenerationRequest, device: Device, weights: str, force: bool) -> None:
    """Queue the run, and put its id into the address so that a reload finds it again."""
    library, _ = session.library()
    evidence = session.evidence(plan().get(PUBLISHED_KEY, True)).evidence
    try:
        job_id = jobs.submit(
            request,
            device,
            weights="hub" if weights == "hub" else "synthetic",
            predict=lambda: predictions_for(request, device, session.facts(), jobs.worker_pid, library, evidence),
            force=force,
        )
    except PlannerError as error:
        st.error(sentence(str(error)), icon=":material/error:")
        return
    st.query_params["job"] = job_id


controls, results = controls_and_results("Request")
with controls:
    request = request_controls()
with results:
    programs_notice()
    not_installed = missing()
    if not_installed:
        st.warning(f"**Nothing can be run here.** {sentence(str(not_installed))}", icon=":material/build:")
    attached_cards_view()
    if request is None:
        st.info("Correct the request, then verify it.", icon=":material/arrow_back:")
        st.stop()
    device = choose_device()
    if device is None:
        st.stop()
    capacity = capacity_input(device)
    device = Device(device.card, capacity.size_bytes)
    with st.container(horizontal=True, vertical_alignment="bottom", gap="medium"):
        weights = st.segmented_control(
            "Weights",
            ("synthetic", "hub"),
            default="synthetic",
            required=True,
            key="weights",
            help="synthetic: random weights of the real shapes and sizes, without a download. hub: the real weights, "
            "downloaded once.",
        )
        force = st.checkbox(
            "Measure again", key="force", help="Run the request even if the history already has a run of it."
        )
    (jobs, problem), is_possible = session.queue(), capacity.is_possible
    if problem and session.store()[0]:
        # An error of the history itself is already shown at the top of the page.
        st.error(sentence(problem), icon=":material/error:")
    if is_possible:
        try:
            check_runnable(request, device)
        except NotInstalled:
            # The warning above has said so, before anything was chosen.
            is_possible = False
        except PlannerError as error:
            is_possible = False
            st.info(sentence(str(error)), icon=":material/info:")
    pressed = st.button(
        "Verify",
        type="primary",
        icon=":material/play_arrow:",
        disabled=jobs is None or not is_possible,
        key="verify",
    )
    if jobs is not None:
        if pressed:
            start(jobs, request, device, weights, force)
        job_view(jobs, request)
    command = verify_command(request, capacity.size_bytes)
    rehearsal = f"\n{command} --device cpu" if is_possible and not device.card else ""
    where = "on a machine with a GPU or, as a rehearsal, on this one" if rehearsal else "on a machine with a GPU"
    st.caption(f"In a terminal, {where}:")
    st.code(f"{command}{rehearsal}", language="bash", wrap_lines=True)
    if not device.card:
        st.download_button(
            "Notebook for a Colab T4",
            NOTEBOOK.read_bytes,
            NOTEBOOK.name,
            "application/x-ipynb+json",
            icon=":material/download:",
            key="notebook",
            help="Measures the most informative requests on a GPU, as 'make gpu-check' does, and writes a file of "
            "runs to import here.",
        )
