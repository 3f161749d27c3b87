"""Emulated capacities of a device: their limits, and the names of runs at them."""

from dataclasses import replace

import pytest

from cache.machine.attached import cards
from cache.machine.device import Device, check_capacity, check_runnable, environment_of
from planner.errors import InvalidArgument
from planner.request import GenerationRequest
from planner.units import GIB

REQUEST = GenerationRequest(width=64, height=64)


@pytest.mark.parametrize(
    ("capacity", "message"),
    [
        (GIB // 2, "capacity must be at least 1 GiB, got '0.5 GiB' (nearest: 1 GiB)"),
        (
            15_634_661_376,
            "capacity must be below the GPU's memory of 14.56 GiB, got '14.56 GiB' (leave it out to use",
        ),
        (80 * GIB, "capacity must be below the GPU's memory of 14.56 GiB, got '80 GiB'"),
    ],
)
def test_a_capacity_outside_its_limits_is_refused(nvml, capacity, message):
    [card] = cards()
    with pytest.raises(InvalidArgument) as caught:
        check_runnable(REQUEST, Device(card, capacity))
    assert str(caught.value).startswith(message)
    assert caught.value.argument == "capacity"


def test_the_smallest_and_largest_capacity_are_accepted(nvml):
    [card] = cards()
    for capacity in (None, GIB, card.total_bytes - 1):
        check_runnable(REQUEST, Device(card, capacity))


def test_the_cpu_has_no_capacity_to_emulate():
    check_capacity(Device())
    with pytest.raises(InvalidArgument, match=r"capacity needs a GPU: on the CPU .*, got '16 GiB' \(leave it out"):
        check_runnable(REQUEST, Device(emulated_bytes=16 * GIB))


def test_an_emulated_run_has_the_same_device_and_its_capacity(nvml):
    [card] = cards()
    whole, emulated = Device(card), Device(card, 8 * GIB)
    # One lock for the card, whatever is emulated on it.
    assert whole.key == emulated.key
    environment = environment_of(emulated)
    assert environment == replace(environment_of(whole), emulated_bytes=8 * GIB)
    assert (environment.card, environment.card_name) == ("Tesla T4", "Tesla T4, 8 GiB emulated")
    assert environment_of(whole).card_name == "Tesla T4"
    assert environment.environment_id != environment_of(whole).environment_id
