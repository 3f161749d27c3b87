"""Cards as people have them: in their own order, from the machine, described, cut by MIG, and shared by workers."""

import pytest

from planner.cards.lookup import CATALOGUE, SLICES, card_named, described_card, shared_card
from planner.fit import fit
from planner.request import GenerationRequest
from planner.units import gib, signed_gib
from tests.ui.conftest import texts


def names(at) -> list[str]:
    """The cards that are answered for, in their order."""
    return [e.value.strip("*") for e in at.markdown if e.value.startswith("**") and "GiB of" not in e.value][
        1 : 1 + len(at.metric)
    ]


def expanded(at) -> bool:
    (found,) = (one for one in at.expander if one.label == "Other GPUs, and sharing")
    return found.proto.expanded


def test_cards_keep_the_order_of_the_link_and_of_choosing(open_page):
    at = open_page(gpu=["RTX 4060", "T4", "A10"])
    assert names(at) == ["RTX 4060", "T4", "A10"]
    at.multiselect(key="gpu").set_value(["L4", "RTX 4060", "T4"]).run()
    assert names(at) == ["L4", "RTX 4060", "T4"]


def test_every_card_and_slice_can_be_chosen_and_the_slices_come_last(open_page):
    at = open_page(gpu=["A100 3g.20gb", "T4"])
    assert not at.exception and not at.warning
    assert at.multiselect(key="gpu").options == [card.name for card in (*CATALOGUE, *SLICES)]
    assert names(at) == ["A100-40GB 3g.20gb", "T4"]
    found = fit(GenerationRequest(), card_named("A100-40GB 3g.20gb"))
    assert at.metric[0].value == signed_gib(found.headroom_bytes)
    assert not expanded(at)


def test_a_described_card_stands_beside_the_others(open_page):
    at = open_page(gpu=["T4"], gpu_memory="6GiB", compute_capability="8.6")
    assert not at.exception and not at.warning
    card = described_card("6GiB", "8.6")
    assert names(at) == ["T4", card.name]
    assert at.metric[1].value == signed_gib(fit(GenerationRequest(), card).headroom_bytes)
    assert expanded(at)


def test_half_a_description_is_no_card_and_no_error(open_page):
    at = open_page(gpu=["T4"])
    assert not expanded(at)
    at.text_input(key="gpu_memory").set_value("6GiB").run()
    assert not at.error and len(at.metric) == 1
    assert "Give both, and the GPU stands beside the others." in texts(at.caption)
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
def test_a_wrong_description_is_said_in_place_and_the_others_stand(open_page, memory, capability, message):
    at = open_page(gpu=["T4"], gpu_memory=memory, compute_capability=capability)
    assert not at.exception
    assert message in texts(at.error)
    assert len(at.metric) == 1


def test_the_machines_card_is_planned_on_with_the_memory_free_now(open_page, nvml):
    at = open_page(gpu=["T4"])
    assert names(at) == ["T4"]
    at.toggle(key="attached").set_value(True).run()
    assert not at.exception
    assert names(at) == ["T4", "Tesla T4 (attached)"]
    assert f"of {gib(nvml.free[0])} usable" in texts(at.caption)


def test_two_cards_of_a_kind_are_told_apart(open_page, nvml):
    nvml.uuids = ["GPU-11111111-aaaa", "GPU-22222222-bbbb"]
    at = open_page(gpu=["T4"], attached="true")
    assert names(at) == ["T4", "Tesla T4 (attached, 0)", "Tesla T4 (attached, 1)"]
    assert f"of {gib(nvml.free[1])} usable" in texts(at.caption)
    assert at.segmented_control(key="over-time").options == names(at)


def test_a_machine_without_a_card_says_so_where_it_was_asked_for(open_page, no_driver):
    at = open_page(gpu=["T4"], attached="true")
    assert not at.exception
    assert expanded(at)
    assert "No NVIDIA driver is on this machine" in texts(at.caption)
    assert len(at.metric) == 1


def test_a_card_too_old_for_todays_torch_says_so(open_page):
    at = open_page(gpu=["V100-16GB", "T4"])
    assert not at.exception
    assert "V100-16GB: can be planned for and not verified" in texts(at.info)
    assert texts(at.caption).count("too old for today's torch") == 1
    assert "planned for and not verified" not in texts(open_page(gpu=["T4"]).info)


def test_every_card_of_the_catalogue_can_be_planned_on_at_once(open_page):
    at = open_page(gpu=[card.name for card in (*CATALOGUE, *SLICES)])
    assert not at.exception and not at.warning
    assert len(at.metric) == len(CATALOGUE) + len(SLICES)


def test_workers_share_every_card(open_page):
    at = open_page(gpu=["T4", "A10"], workers="3", gpu_memory="12GiB", compute_capability="8.6")
    assert not at.exception and not at.warning
    described = described_card("12GiB", "8.6")
    assert names(at) == [f"{name}, 1 of 3 workers" for name in ("T4", "A10", described.name)]
    shares = [shared_card(card, 3) for card in (card_named("T4"), card_named("A10"), described)]
    assert [metric.value for metric in at.metric] == [
        signed_gib(fit(GenerationRequest(), share).headroom_bytes) for share in shares
    ]
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


def test_cards_come_along_to_verify_and_back(open_page, no_driver):
    at = open_page(gpu=["A10", "T4"], gpu_memory="6GiB", compute_capability="8.6", workers="2")
    before = names(at)
    at.switch_page("pages/1_Verify.py").run()
    assert at.query_params["workers"] in ("2", ["2"])
    at.switch_page("streamlit_app.py").run()
    assert not at.exception
    assert names(at) == before


def test_without_a_card_of_the_catalogue_the_described_one_is_enough(open_page, no_driver):
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
def test_an_alias_among_names_is_taken_for_its_card(open_page, given, taken):
    at = open_page(gpu=given)
    assert not at.exception
    assert names(at) == at.multiselect(key="gpu").value == taken
    assert ("unknown GPU 'T5'" in texts(at.warning)) is ("T5" in given)
