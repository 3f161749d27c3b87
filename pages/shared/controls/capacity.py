"""The control of a capacity to emulate on the GPU that measures."""

from typing import NamedTuple

import streamlit as st

from cache.machine.device import Device, check_capacity
from pages.shared.frame.escape import sentence
from planner.errors import InvalidArgument
from planner.units import parse_bytes

# The key is also the name in the address.
CAPACITY_KEY = "capacity"
_OPENED = "capacity-opened"


class Capacity(NamedTuple):
    """A capacity to emulate in bytes, None for the whole GPU, and whether the chosen device can emulate it."""

    size_bytes: int | None
    is_possible: bool


def capacity_input(device: Device) -> Capacity:
    """Draw the control of the emulated capacity, and show its errors.

    It is folded until a link or the user gives a capacity. On the CPU, which cannot emulate one, it is drawn only to
    show a capacity that was given before.
    """
    if st.session_state.get(CAPACITY_KEY) or st.query_params.get(CAPACITY_KEY):
        # It stays open for a user who empties the field.
        st.session_state[_OPENED] = True
    elif device.card is None:
        return Capacity(None, True)
    with st.expander("Emulate a smaller capacity", expanded=st.session_state.get(_OPENED, False)):
        text = st.text_input(
            "Capacity",
            key=CAPACITY_KEY,
            bind="query-params",
            placeholder="16GiB",
            help="torch refuses to use more, as on a GPU with this much memory, which includes the CUDA context. "
            "Kernels and context stay those of the real GPU. Leave it empty to use the whole GPU.",
        )
        text = (text or "").strip()
        if not text:
            return Capacity(None, True)
        size_bytes = None
        try:
            size_bytes = parse_bytes(CAPACITY_KEY, text)
            check_capacity(Device(device.card, size_bytes))
        except InvalidArgument as error:
            st.error(sentence(str(error)), icon=":material/error:")
            return Capacity(size_bytes, False)
    return Capacity(size_bytes, True)
