"""Draw this machine's GPUs, their free memory and the processes on them, and the choice of device."""

import streamlit as st

from cache.machine.device import Device
from cache.machine.versions import missing
from pages.shared.frame import session
from pages.shared.guard.rights import refused
from planner.units import gib

# The seconds between two looks at the GPUs and the worker.
LOOK_S = 5
_REHEARSES = "rehearses"


def attached_cards_view(*, is_rehearsing: bool) -> None:
    """Draw every GPU of this machine, again every few seconds while there is something to watch.

    The box about no GPU does not come again in a session that saw a rehearsal.
    """
    if is_rehearsing:
        st.session_state[_REHEARSES] = True
    found, problem = session.attached()
    jobs = session.jobs()
    if problem and not st.session_state.get(_REHEARSES):
        rehearse = "" if missing() else " You can rehearse the run on the CPU below, which says nothing about GPUs."
        st.info(
            f"**No GPU to measure here:** {session.why_no_gpu(problem)}.{rehearse}",
            icon=":material/developer_board_off:",
        )
    watches = bool(found) or bool(jobs and jobs.worker_pid)
    st.fragment(_attached_cards, run_every=LOOK_S if watches else None)()


def elsewhere() -> None:
    """Say how to measure on another machine and bring the run here."""
    st.caption(
        "On the other machine, `python -m planner history export runs.jsonl` writes the runs to a file. Import it on "
        "the History page here, or with `python -m planner history import runs.jsonl`."
    )


def _attached_cards() -> None:
    found, _ = session.attached()
    for card, problem in found:
        with st.container(border=True):
            st.markdown(f"**{card.name}** :gray[driver {card.driver}{', MIG' if card.mig else ''}]")
            st.progress(card.used_fraction, f"{gib(card.free_bytes)} free of {gib(card.total_bytes)}")
            holders = [
                f"{holder.name} ({holder.pid}{', ' + gib(holder.used_bytes) if holder.used_bytes else ''})"
                for holder in card.holders
            ]
            st.caption("In use by " + ", ".join(holders) if holders else "No process uses it.")
            if problem:
                st.error(f"{problem.reason}: {problem.advice}.", icon=":material/error:")
    jobs = session.jobs()
    if jobs and jobs.worker_pid and not jobs.active():
        with st.container(horizontal=True, vertical_alignment="center"):
            st.caption(f"The model stays loaded for the next run (worker {jobs.worker_pid}).", width="stretch")
            if (
                st.button(
                    "Free memory", icon=":material/eject:", key="release", help="Ends the worker and frees its memory."
                )
                and not refused()
            ):
                jobs.release()
                st.rerun(scope="fragment")


def choose_device() -> Device | None:
    """Draw the choice of device and return it, None if it is gone.

    The usable GPU with the most free memory comes first, and the CPU last.
    """
    found, _ = session.attached()
    usable = sorted((card for card, problem in found if problem is None), key=lambda card: -card.free_bytes)
    devices = {f"{card.name} ({card.index})": Device(card) for card in usable} | {"CPU rehearsal": Device()}
    name = st.segmented_control(
        "Device",
        list(devices),
        default=next(iter(devices)),
        required=True,
        key="device",
        help="The rehearsal runs the real architecture on the CPU, at up to 512×512. It is kept as a CPU run and says "
        "nothing about GPUs. Its weights are synthetic: real ones would take the same memory.",
    )
    if name not in devices:
        st.warning(f"{name} is no longer there. Choose another device.", icon=":material/warning:")
    return devices.get(name)
