"""Test the choice of GPUs: their order, attached and described ones, MIG slices, and workers."""

import re

import pytest

from planner.cards.lookup import CATALOGUE, SLICES, card_named, described_card, shared_card
from planner.fit import fit
from planner.request import GenerationRequest
from planner.units import gib
from tests.ui.conftest import following, headroom, texts


def names(at) -> list[str]:
    """Return the GPUs of the boxes with a headroom, in their order."""
    return [re.findall(r"\*\*([^*]+)\*\*", texts([heading]))[0] for heading in at.header][: len(at.metric)]


def expanded(at) -> bool:
    (found,) = (one for one in at.expander if one.label == "Other GPUs and sharing")
    return found.proto.expanded


def test_gpus_keep_the_order_of_choosing(open_page):
    at = open_page(gpu=["RTX 4060", "T4", "A10"])
    assert names(at) == ["RTX 4060", "T4", "A10"]
    at.multiselect(key="gpu").set_value(["L4", "RTX 4060", "T4"]).run()
    assert names(at) == ["L4", "RTX 4060", "T4"]


def test_every_gpu_and_slice_is_on_offer(open_page):
    at = open_page(gpu=["A100 3g.20gb", "T4"])
    assert not at.exception and not at.warning
    assert at.multiselect(key="gpu").options == [card.name for card in (*CATALOGUE, *SLICES)]
    assert names(at) == ["A100-40GB 3g.20gb", "T4"]
    assert at.metric[0].value == headroom(fit(GenerationRequest(), card_named("A100-40GB 3g.20gb")))
    assert not expanded(at)


def test_a_described_gpu_is_planned(open_page):
    at = open_page(gpu=["T4"], gpu_memory="6GiB", compute_capability="8.6")
    assert not at.exception and not at.warning
    card = described_card("6GiB", "8.6")
    assert names(at) == ["T4", card.name]
    assert at.metric[1].value == headroom(fit(GenerationRequest(), card))
    assert expanded(at)


def test_half_a_description_is_ignored(open_page):
    at = open_page(gpu=["T4"])
    assert not expanded(at)
    at.text_input(key="gpu_memory").set_value("6GiB").run()
    assert not at.error and len(at.metric) == 1
    assert "Give both to add this GPU to the others." in texts(at.caption)
    at.text_input(key="compute_capability").set_value("8.6").run()
    assert len(at.metric) == 2


@pytest.mark.parametrize(
    ("memory", "capability", "message"),
    [
        ("16GB", "7.5", "GPU memory must be a number with B, KiB, MiB or GiB, got '16GB' (for example 16GiB)."),
        ("16GiB", "seven", "Compute capability must be a version from 5.0 up, got 'seven' (for example 7.5 for a T4)."),
        ("x" * 3000, "7.5", "GPU memory must be a number with B, KiB, MiB or GiB, got 'xxx"),
    ],
)
def test_a_wrong_description_is_an_error(open_page, memory, capability, message):
    at = open_page(gpu=["T4"], gpu_memory=memory, compute_capability=capability)
    assert not at.exception
    assert message in texts(at.error)
    assert len(at.metric) == 1


def test_attached_gpus_have_their_free_memory(open_page, nvml):
    at = open_page(gpu=["T4"])
    assert names(at) == ["T4"]
    at.toggle(key="attached").set_value(True).run()
    assert not at.exception
    assert names(at) == ["T4", "Tesla T4 (attached)"]
    assert f"of {gib(nvml.free[0])} usable" in texts(at.caption)


def test_two_gpus_of_one_model_have_different_names(open_page, nvml):
    nvml.uuids = ["GPU-11111111-aaaa", "GPU-22222222-bbbb"]
    at = open_page(gpu=["T4"], attached="true")
    assert names(at) == ["T4", "Tesla T4 (attached, 0)", "Tesla T4 (attached, 1)"]
    assert f"of {gib(nvml.free[1])} usable" in texts(at.caption)
    assert following(at.segmented_control, "detail").options == names(at)


def test_a_machine_without_a_gpu_says_so(open_page, no_driver):
    at = open_page(gpu=["T4"], attached="true")
    assert not at.exception
    assert expanded(at)
    assert "No NVIDIA driver is on this machine" in texts(at.caption)
    assert len(at.metric) == 1


def test_a_gpu_too_old_for_torch_says_so(open_page):
    at = open_page(gpu=["V100-16GB", "T4"])
    assert not at.exception
    assert "V100-16GB: can be planned for and not verified" in texts(at.info)
    assert texts(at.caption).count("too old for the current torch") == 1
    assert "planned for and not verified" not in texts(open_page(gpu=["T4"]).info)


def test_the_whole_catalogue_can_be_planned(open_page):
    every = [card.name for card in (*CATALOGUE, *SLICES)]
    at = open_page(gpu=every)
    assert not at.exception and not at.warning and not at.metric
    # More GPUs than boxes have room for are a table, the best first.
    [table] = [frame.value for frame in at.dataframe]
    assert sorted(table["GPU"]) == sorted(every)
    assert following(at.selectbox, "detail").options == every


def test_workers_share_every_gpu(open_page):
    at = open_page(gpu=["T4", "A10"], workers="3", gpu_memory="12GiB", compute_capability="8.6")
    assert not at.exception and not at.warning
    described = described_card("12GiB", "8.6")
    assert names(at) == [f"{name}, 1 of 3 workers" for name in ("T4", "A10", described.name)]
    shares = [shared_card(card, 3) for card in (card_named("T4"), card_named("A10"), described)]
    assert [metric.value for metric in at.metric] == [headroom(fit(GenerationRequest(), share)) for share in shares]
    at.number_input(key="workers").set_value(1).run()
    assert names(at) == ["T4", "A10", described.name]
    assert expanded(at)


@pytest.mark.parametrize(
    ("params", "message"),
    [
        ({"workers": "65"}, "workers must be between 1 and 64, got 65 (nearest: 64); 1 is shown instead"),
        ({"workers": "many"}, "workers must be a whole number, got 'many'; 1 is shown instead"),
        ({"attached": "yes"}, "attached must be true or false, got 'yes'; false is shown instead"),
    ],
)
def test_a_link_with_a_bad_value_says_so(open_page, params, message):
    at = open_page(**params)
    assert not at.exception
    assert message in texts(at.warning)
    assert len(at.metric) == 3


def test_gpus_are_kept_on_the_way_to_verify_and_back(open_page, no_driver):
    at = open_page(gpu=["A10", "T4"], gpu_memory="6GiB", compute_capability="8.6", workers="2")
    before = names(at)
    at.switch_page("pages/1_Verify.py").run()
    assert at.query_params["workers"] in ("2", ["2"])
    at.switch_page("streamlit_app.py").run()
    assert not at.exception
    assert names(at) == before


def test_a_described_gpu_alone_is_enough(open_page, no_driver):
    at = open_page(gpu="", gpu_memory="6GiB", compute_capability="8.6")
    for _ in range(2):
        assert not at.exception and not at.warning
        assert names(at) == [described_card("6GiB", "8.6").name]
        at.switch_page("pages/1_Verify.py").run()
        at.switch_page("streamlit_app.py").run()


@pytest.mark.parametrize(
    ("given", "taken"),
    [
        (["A100", "T4"], ["A100-40GB", "T4"]),
        (["T4", "A10", "A100"], ["T4", "A10", "A100-40GB"]),
        (["T4", "Tesla T4", "T5"], ["T4"]),
    ],
)
def test_aliases_in_a_link_name_their_gpu(open_page, given, taken):
    at = open_page(gpu=given)
    assert not at.exception
    assert names(at) == at.multiselect(key="gpu").value == taken
    assert ("unknown GPU 'T5'" in texts(at.warning)) is ("T5" in given)
