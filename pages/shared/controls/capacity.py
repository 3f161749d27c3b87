"""The control of a capacity to emulate on the card that measures."""

from typing import NamedTuple

import streamlit as st

from cache.machine.device import Device, check_capacity
from pages.shared.frame.escape import sentence
from planner.errors import InvalidArgument
from planner.units import parse_bytes

# Its name in the address as well.
CAPACITY_KEY = "capacity"
_OPENED = "capacity-opened"


class Capacity(NamedTuple):
    """What is to be emulated, None for the whole card, and whether the chosen device can."""

    size_bytes: int | None
    is_possible: bool


def capacity_input(device: Device) -> Capacity:
    """Draw the control, folded until a link or a hand puts something in; what is wrong with it is said there."""
    if st.session_state.get(CAPACITY_KEY) or st.query_params.get(CAPACITY_KEY):
        # It is not folded again under the hand that empties it.
        st.session_state[_OPENED] = True
    with st.expander("Emulate a smaller capacity", expanded=st.session_state.get(_OPENED, False)):
        text = st.text_input(
            "Capacity",
            key=CAPACITY_KEY,
            bind="query-params",
            placeholder="16GiB",
            help="torch refuses beyond it, as on a card that has no more: its CUDA context is within. Kernels and "
            "context stay those of this card. Empty is the whole card.",
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
