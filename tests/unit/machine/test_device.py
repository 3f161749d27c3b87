"""What can run on a device, and how the environment of a run describes it."""

import json
from dataclasses import replace

import pytest

from cache.machine.attached import cards
from cache.machine.device import Device, allocator_environment, check_capacity, check_runnable, environment_of
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


def test_the_environment_is_that_of_the_request(nvml, monkeypatch):
    [card] = cards()
    for name in ("PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF"):
        monkeypatch.delenv(name, raising=False)
    asked = replace(REQUEST, dtype="bfloat16", attention="eager", allocator="expandable")
    found = environment_of(Device(card), request=asked)
    assert (found.dtype, found.attention) == ("bfloat16", "eager")
    assert found.allocator_settings == "PYTORCH_ALLOC_CONF=expandable_segments:True"
    plain = environment_of(Device(card), request=REQUEST)
    assert (plain.dtype, plain.attention, plain.allocator_settings) == ("float16", "sdpa", "")
    assert plain == environment_of(Device(card))


@pytest.mark.parametrize(("dtype", "used"), [("float16", "bfloat16"), ("bfloat16", "bfloat16"), ("float32", "float32")])
def test_a_rehearsal_says_in_which_data_type_it_ran(dtype, used):
    assert environment_of(Device(), request=replace(REQUEST, dtype=dtype)).dtype == used


@pytest.mark.parametrize(
    ("given", "set_to"),
    [
        ({}, "expandable_segments:True"),
        ({"PYTORCH_ALLOC_CONF": "expandable_segments:False"}, "expandable_segments:True"),
        ({"PYTORCH_CUDA_ALLOC_CONF": "max_split_size_mb:64"}, "max_split_size_mb:64,expandable_segments:True"),
        (
            {"PYTORCH_ALLOC_CONF": "backend:native", "PYTORCH_CUDA_ALLOC_CONF": "max_split_size_mb:64"},
            "backend:native,expandable_segments:True",
        ),
    ],
)
def test_expandable_segments_are_set_beside_other_settings(given, set_to):
    expandable = replace(REQUEST, allocator="expandable")
    assert allocator_environment(expandable, given) == {"PYTORCH_ALLOC_CONF": set_to}
    assert allocator_environment(REQUEST, given) == {}


def test_xformers_needs_a_gpu_and_its_package(nvml, monkeypatch):
    asked = replace(REQUEST, attention="xformers")
    with pytest.raises(InvalidArgument, match="attention must be sdpa or eager on the CPU"):
        check_runnable(asked, Device())
    [card] = cards()
    found = {"xformers": None}
    monkeypatch.setattr("importlib.util.find_spec", found.get)
    with pytest.raises(InvalidArgument, match="attention must be sdpa or eager, for xformers is not installed here"):
        check_runnable(asked, Device(card))
    found["xformers"] = object()
    check_runnable(asked, Device(card))


@pytest.mark.parametrize(
    ("values", "argument"),
    [({"task": "inpaint"}, "task"), ({"controlnets": 2}, "controlnets"), ({"ip_adapter": "plus"}, "ip_adapter")],
)
def test_the_hub_has_the_plain_model_alone(values, argument):
    request = replace(REQUEST, **values)
    check_runnable(request, Device())
    check_runnable(replace(REQUEST, lora_rank=4), Device(), weights="hub")
    with pytest.raises(InvalidArgument, match="the Hub's model has") as caught:
        check_runnable(request, Device(), weights="hub")
    assert caught.value.argument == argument
    assert "synthetic weights" in str(caught.value)


def test_a_folder_runs_what_it_has_weights_for(tmp_path):
    def keep(name: str, **values) -> None:
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(json.dumps(values))

    keep("model_index.json")
    keep("unet/config.json", in_channels=4)
    keep("controlnet/config.json")
    keep("controlnet_1/config.json")
    keep("image_encoder/config.json")
    check_runnable(replace(REQUEST, controlnets=2, ip_adapter="base"), Device(), str(tmp_path))
    with pytest.raises(InvalidArgument, match="controlnets must be at most 2, as many as this folder has"):
        check_runnable(replace(REQUEST, controlnets=3), Device(), str(tmp_path))
    inpaint = replace(REQUEST, task="inpaint")
    with pytest.raises(InvalidArgument, match="task needs a UNet of 9 input channels"):
        check_runnable(inpaint, Device(), str(tmp_path))
    keep("unet/config.json", in_channels=9)
    check_runnable(inpaint, Device(), str(tmp_path))
    with pytest.raises(InvalidArgument, match="task needs a UNet of 4 input channels"):
        check_runnable(REQUEST, Device(), str(tmp_path))


def test_a_rehearsal_counts_all_pixels_of_the_largest_pass():
    check_runnable(GenerationRequest(task="txt2img", width=256, height=256, hires=2.0), Device())
    for values in ({"hires": 2.25}, {"images_per_prompt": 5}, {"hires": 2.0, "batch": 2}):
        request = GenerationRequest.from_dict({"task": "txt2img", "width": 256, "height": 256} | values)
        with pytest.raises(InvalidArgument, match="device cpu rehearses at most"):
            check_runnable(request, Device())
