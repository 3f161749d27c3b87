"""The cards in this machine: their free memory now, who holds it, and what to do where there is none."""

import streamlit as st

from cache.machine.device import Device
from cache.machine.versions import missing
from pages.shared.frame import session
from planner.units import gib


@st.fragment(run_every=5)
def attached_cards_view() -> None:
    """Every attached card as it is now; redrawn every few seconds."""
    found, problem = session.attached()
    if problem:
        rehearse = "" if missing() else "Rehearse the path on the CPU below. "
        st.info(
            f"**No GPU to measure here:** {problem.reason}. {rehearse}To measure a GPU:\n"
            "1. run the command below on a machine that has one, in a checkout of this planner;\n"
            "2. `python -m planner history export runs.jsonl` there writes what it measured;\n"
            "3. import that file on the History page here, or with `python -m planner history import runs.jsonl`.",
            icon=":material/developer_board_off:",
        )
    for card, problem in found:
        with st.container(border=True):
            st.markdown(f"**{card.name}** :gray[driver {card.driver}{', MIG' if card.mig else ''}]")
            st.progress(card.used_fraction, f"{gib(card.free_bytes)} free of {gib(card.total_bytes)}")
            holders = [
                f"{holder.name} ({holder.pid}{', ' + gib(holder.used_bytes) if holder.used_bytes else ''})"
                for holder in card.holders
            ]
            st.caption("Held by " + ", ".join(holders) if holders else "No process holds it.")
            if problem:
                st.error(f"{problem.reason}: {problem.advice}.", icon=":material/error:")
    jobs = session.jobs()
    if jobs and jobs.worker_pid and not jobs.active():
        with st.container(horizontal=True, vertical_alignment="center"):
            st.caption(f"Worker {jobs.worker_pid} keeps the model loaded for the next run.", width="stretch")
            if st.button(
                "Release it", icon=":material/eject:", key="release", help="Ends the worker and frees memory."
            ):
                jobs.release()
                st.rerun(scope="fragment")


def choose_device() -> Device | None:
    """Draw the choice of device; the freest usable card comes first, the CPU last. None when the chosen one is gone."""
    found, _ = session.attached()
    usable = sorted((card for card, problem in found if problem is None), key=lambda card: -card.free_bytes)
    devices = {f"{card.name} ({card.index})": Device(card) for card in usable} | {"CPU rehearsal": Device()}
    name = st.segmented_control(
        "Device",
        list(devices),
        default=next(iter(devices)),
        required=True,
        key="device",
        help="The rehearsal runs the real architecture on the CPU at up to 512×512: it shows the path, "
        "is kept as a CPU run, and judges no GPU.",
    )
    if name not in devices:
        st.warning(f"{name} has gone since it was chosen. Choose another device.", icon=":material/warning:")
    return devices.get(name)
