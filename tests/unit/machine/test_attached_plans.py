"""Plans on two attached cards of one kind: whole, shared, and at an emulated capacity."""

import json
import shlex

import pytest

from cache.machine.attached import cards, cards_to_plan_on
from cache.machine.device import Device
from planner.alternatives.remedies import remedies
from planner.cards.lookup import emulated_card, shared_card
from planner.cli.arguments import cards_of
from planner.cli.main import main
from planner.fit import fit
from planner.plan import Plan
from planner.report.markdown import fit_markdown
from planner.report.text import fit_text
from planner.request import GenerationRequest
from planner.units import GIB
from tests.unit.asked import plan_asked

BIG = GenerationRequest(width=2048, height=2048)


@pytest.fixture
def two(nvml):
    nvml.uuids = ["GPU-11111111-aaaa", "GPU-22222222-bbbb"]
    return nvml


@pytest.mark.parametrize("workers", [1, 3])
@pytest.mark.parametrize("form", ["table", "json", "md"])
def test_two_cards_of_a_kind_have_a_row_each(capsys, two, form, workers):
    argv = ["fit", "--gpu", "attached", "--workers", str(workers), "--no-reference", "--format", form]
    assert main(argv) == 0
    said = capsys.readouterr().out
    share = f", 1 of {workers} workers" if workers > 1 else ""
    names = [f"Tesla T4 (attached, {place}){share}" for place in (0, 1)]
    if form == "json":
        assert [row["name"] for row in json.loads(said)["gpus"]] == names
    else:
        # A report also says below its table what stays on each GPU.
        table = "\n".join(line for line in said.splitlines() if form == "table" or line.startswith("|"))
        assert all(table.count(name) == 1 for name in names)
    if form == "md":
        assert f"$ {shlex.join(['python', '-m', 'planner', 'fit', '--gpu', 'attached'])}" in said


@pytest.mark.parametrize("emulated_bytes", [None, 12 * GIB])
@pytest.mark.parametrize("workers", [1, 2])
def test_the_command_of_a_report_plans_on_the_same_memory(two, workers, emulated_bytes):
    whole = cards_to_plan_on(cards())
    if emulated_bytes:
        whole = [emulated_card(card, emulated_bytes) for card in whole]
    planned = [shared_card(card, workers) for card in whole]
    answers = [fit(BIG, card, "dry-run") for card in planned]
    command = Plan(request=BIG, basis="dry-run").command(planned)
    again = cards_of(plan_asked(shlex.split(command)[4:]))
    assert [card.workers for card in again] == [workers] * len(again)
    assert {card.usable_bytes for card in again} == {card.usable_bytes for card in planned}
    assert all(card.name in fit_text(BIG, answers) for card in planned)
    assert command in fit_markdown(BIG, answers, {}, command)


@pytest.mark.parametrize("emulated_bytes", [None, 12 * GIB])
def test_fewer_workers_can_share_a_shared_card(two, emulated_bytes):
    for attached in cards():
        card = Device(attached, emulated_bytes).as_card()
        assert (card.origin, card.index, card.emulated_bytes) == ("attached", attached.index, emulated_bytes)
        found = remedies(GenerationRequest(width=1280, height=1280), shared_card(card, 2)).found
        fewer = next(remedy for remedy in found if remedy.keys == ("workers",))
        assert fewer.answer.card == card and fewer.remark.startswith("Makes it fit: each has")
        assert fewer.answer.card.usable_bytes == card.usable_bytes


def test_the_capacity_of_a_share_is_that_of_the_whole_card(two):
    card = cards()[0].as_card()
    share = emulated_card(shared_card(card, 2), 12 * GIB)
    assert share == shared_card(emulated_card(card, 12 * GIB), 2)
    assert (share.usable_bytes, share.workers, share.emulated_bytes) == (6 * GIB, 2, 12 * GIB)
    assert share.whole == emulated_card(card, 12 * GIB)


def test_two_cards_with_equal_free_memory_stay_two(capsys, two):
    two.free[1] = two.free[0]
    assert main(["fit", "--gpu", "Attached", "--no-reference", "--json"]) == 0
    assert len(json.loads(capsys.readouterr().out)["gpus"]) == 2


def test_mig_instances_of_a_card_have_their_own_numbers(two, monkeypatch):
    import pynvml

    monkeypatch.setattr(pynvml, "nvmlDeviceGetCount", lambda: 1)
    monkeypatch.setattr(pynvml, "nvmlDeviceGetMigMode", lambda handle: (pynvml.NVML_DEVICE_MIG_ENABLE, 1))
    monkeypatch.setattr(pynvml, "nvmlDeviceGetMaxMigDeviceCount", lambda handle: 2)
    monkeypatch.setattr(pynvml, "nvmlDeviceGetMigDeviceHandleByIndex", lambda handle, index: index)
    two.name = "NVIDIA A100-SXM4-40GB MIG 3g.20gb"
    planned = cards_to_plan_on(cards())
    assert [card.name for card in planned] == [f"{two.name} (attached, 0:{place})" for place in (0, 1)]
    assert [(card.index, card.instance, card.model) for card in planned] == [
        (0, place, "A100-40GB 3g.20gb") for place in (0, 1)
    ]


def test_runs_on_a_card_outside_the_catalogue_are_found(nvml):
    nvml.name = "NVIDIA Unheard Of"
    assert cards()[0].as_card().model == "NVIDIA Unheard Of"
