"""The Verify page: run the planned request on a GPU of this machine and compare it with the prediction."""

from pathlib import Path

import streamlit as st

from cache.machine.device import Device, check_runnable
from cache.machine.versions import NotInstalled, missing
from pages.shared.controls.capacity import capacity_input
from pages.shared.controls.request import request_controls
from pages.shared.frame import session
from pages.shared.frame.chrome import controls_and_results, history_notice, open_page, programs_notice
from pages.shared.frame.escape import sentence
from pages.shared.guard.rights import login_control
from pages.shared.verify.device import attached_cards_view, choose_device, elsewhere
from pages.shared.verify.job import JOB_KEY, result_view, running_view
from pages.shared.verify.start import choose_weights, run_buttons, start, stopped_view
from planner.errors import PlannerError
from planner.report.text import verify_command

NOTEBOOK = Path(__file__).parents[1] / "notebooks" / "verify_on_colab.ipynb"

open_page("Verify", "Run the planned request for real, and see how far off the prediction was.")
login_control()
history_notice()


controls, results = controls_and_results("Request")
with controls:
    request = request_controls()
with results:
    jobs, problem = session.queue()
    # A run that is on comes first, so that Cancel is in sight on every screen.
    is_running = jobs is not None and running_view(jobs)
    programs_notice()
    not_installed = missing()
    if not_installed:
        st.warning(f"**Nothing can be run here.** {sentence(str(not_installed))}", icon=":material/build:")
    attached_cards_view(is_rehearsing=is_running or JOB_KEY in st.query_params)
    if request is None:
        st.info("Correct the request, then verify it.", icon=":material/arrow_back:")
        st.stop()
    device = choose_device()
    if device is None:
        st.stop()
    capacity = capacity_input(device)
    device = Device(device.card, capacity.size_bytes)
    with st.container(horizontal=True, vertical_alignment="bottom", gap="medium"):
        weights = choose_weights(request, device)
        force = st.checkbox(
            "Measure again", key="force", help="Run the request even if the history already has a run of it."
        )
    is_possible = capacity.is_possible
    if problem and session.store()[0]:
        # An error of the history itself is already shown at the top of the page.
        st.error(sentence(problem), icon=":material/error:")
    if is_possible:
        try:
            check_runnable(request, device, weights=weights)
        except NotInstalled:
            # The warning above has said so, before anything was chosen.
            is_possible = False
        except PlannerError as error:
            is_possible = False
            st.info(sentence(str(error)), icon=":material/info:")
    # A second run would only wait for the first.
    pressed = None if is_running else run_buttons(jobs, request, device, weights, force=force, is_possible=is_possible)
    if jobs is not None:
        stopped_view(jobs)
        if pressed:
            start(jobs, pressed, device, weights, force=force)
        result_view(jobs)
    command = verify_command(request, capacity.size_bytes)
    rehearsal = f"\n{command} --device cpu" if is_possible and not device.card else ""
    where = "on a machine with a GPU or, as a rehearsal, on this one" if rehearsal else "on a machine with a GPU"
    st.caption(f"In a terminal, {where}:")
    st.code(f"{command}{rehearsal}", language=None, wrap_lines=True)
    if not device.card:
        elsewhere()
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
