import itertools
import json
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cache.jobs import sweep
from cache.jobs.resident import pipeline_key
from cache.jobs.sweep import GRID_CAPACITY_BYTES, VARIED, Entry, entries_in, grid, in_order, runnable
from cache.machine.attached import cards
from cache.machine.device import Device
from planner.cards.lookup import card_named, emulated_card
from planner.errors import InvalidArgument
from planner.fit import fit
from planner.request import GenerationRequest
from planner.units import GIB
from tests.unit.exchange.test_lines import json_values
from tests.unit.strategies import requests

BASE = GenerationRequest(steps=4, prompt_tokens=9)


def on_the_whole_card(entries: list[Entry]) -> list[GenerationRequest]:
    return [one.request for one in entries if one.capacity_bytes is None]


def test_the_grid_covers_each_size_batch_and_option():
    assert len(grid(BASE)) == len(set(grid(BASE))) == 100
    found = on_the_whole_card(grid(BASE))
    assert len(found) == 90
    assert {(one.steps, one.prompt_tokens) for one in found} == {(4, 9)}
    sizes = {(one.width, one.height) for one in found}
    assert sizes == {(side, side) for side in (256, 512, 768, 1024, 1536, 2048)} | {
        (520, 776),
        (1000, 1304),
        (1096, 616),
    }
    for size in sizes:
        of_size = [one for one in found if (one.width, one.height) == size]
        assert {one.task for one in of_size} == {"img2img", "txt2img"}
        assert {one.guidance_scale > 1 for one in of_size} == {True, False}
        assert {one.channels_last for one in of_size} == {True, False}
    for batch in (1, 2, 4, 8):
        of_batch = {(one.task, one.guidance_scale > 1) for one in found if one.batch == batch}
        assert len(of_batch) == 4
    tiled = {(one.task, one.width) for one in found if one.vae_tiling}
    assert tiled == {(task, width) for task in ("img2img", "txt2img") for width in (768, 1000, 1024, 1536, 2048)}


@pytest.mark.parametrize("card", ["T4", "H100-80GB"])
def test_the_grid_has_each_outcome_at_an_emulated_capacity(card):
    limited = [one for one in grid(BASE) if one.capacity_bytes is not None]
    assert {one.capacity_bytes for one in limited} == {GRID_CAPACITY_BYTES} == {16 * GIB}
    assert {(one.request.steps, one.request.task) for one in limited} == {(4, "img2img"), (4, "txt2img")}
    at_16_gib = emulated_card(replace(card_named(card), usable_bytes=80 * GIB, usable_high_bytes=80 * GIB), 16 * GIB)
    verdicts = [fit(one.request, at_16_gib, "dry-run").verdict for one in limited]
    assert set(verdicts) == {"fits", "tight", "no"}
    assert verdicts.count("tight") >= 5


def test_a_grid_at_its_own_capacity_has_no_duplicates():
    found = grid(BASE, 16 * GIB)
    assert len(found) == len(set(found)) < 100
    assert {one.capacity_bytes for one in found} == {16 * GIB}
    assert {one.capacity_bytes for one in grid(BASE, 24 * GIB)} == {16 * GIB, 24 * GIB}


def test_emulated_capacities_come_last_in_groups():
    entries = [Entry(BASE, capacity) for capacity in (24 * GIB, None, 16 * GIB)]
    entries += [Entry(replace(BASE, channels_last=True), capacity) for capacity in (16 * GIB, None, 24 * GIB)]
    capacities = [one.capacity_bytes for one in in_order(entries)]
    assert capacities == [None, None, 16 * GIB, 16 * GIB, 24 * GIB, 24 * GIB]


def test_entries_are_grouped_by_model_and_small_ones_first():
    ordered = on_the_whole_card(in_order(grid(BASE)))
    models = [(one.channels_last, one.safety_checker, one.offload) for one in ordered]
    changes = sum(one != other for one, other in itertools.pairwise(models))
    assert changes == len(set(models)) - 1
    pixels = [one.width * one.height * one.batch for one in ordered if not one.channels_last]
    assert pixels == sorted(pixels)


@given(st.lists(requests(), max_size=20))
def test_ordering_keeps_every_entry(found):
    entries = in_order(map(Entry, found))
    assert sorted(map(hash, entries)) == sorted(map(hash, map(Entry, found)))
    # As the queue's worker is kept.
    models = [pipeline_key(one) for one in on_the_whole_card(entries)]
    changes = sum(one != other for one, other in itertools.pairwise(models))
    assert changes == max(0, len(set(models)) - 1)


def test_an_entry_has_its_differences_from_the_base():
    found = entries_in(b'[{}, {"width": 64, "guidance_scale": 1}, {"task": "txt2img"}]', BASE)
    assert on_the_whole_card(found) == [
        BASE,
        GenerationRequest(width=64, guidance_scale=1, steps=4, prompt_tokens=9),
        GenerationRequest(task="txt2img", steps=4, prompt_tokens=9),
    ]


def test_an_entry_may_have_a_capacity_of_its_own():
    text = b'[{}, {"capacity_bytes": 17179869184, "width": 64}, {"capacity_bytes": null}]'
    capacities = [[one.capacity_bytes for one in entries_in(text, BASE, base)] for base in (None, 24 * GIB)]
    assert capacities == [[None, 16 * GIB, None], [24 * GIB, 16 * GIB, None]]
    assert [one.request.width for one in entries_in(text, BASE)] == [512, 64, 512]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (b'[{"capacity_bytes": "16GiB"}]', "sweep[0].capacity_bytes must be a whole number between 1073741824 and"),
        (b'[{"capacity_bytes": 16}]', "between 1073741824 and 4398046511104, got 16"),
        (b'[{"capacity_bytes": true}]', "sweep[0].capacity_bytes must be a whole number"),
        (b"", "sweep must be JSON (Expecting value, column 1), got ''"),
        (b"[{},\n{]", "sweep must be JSON (Expecting property name enclosed in double quotes, line 2 column 2)"),
        (b"\xff", "sweep must be a JSON file in UTF-8"),
        (b"{}", "sweep must be a JSON array of 1 to 10000 objects, got 'no array'"),
        (b"[]", "sweep must be a JSON array of 1 to 10000 objects, got '0 of them'"),
        (json.dumps([{}] * 10_001).encode(), "got '10001 of them'"),
        (b"[" * 100_000, "sweep must not be nested so deeply"),
        (b"[{}, 1]", "sweep[1] must be an object, got 1"),
        (b'[{}, {"widht": 1}]', "sweep[1] has an unknown field, got 'widht' (did you mean width?)"),
        (b'[{"width": "64"}]', "sweep[0].width must be a whole number, got '64'"),
        (b'[{"width": [[]]}]', "sweep[0].width must be a single value, got 'a list'"),
        (b'[{"width": 65, "task": "txt2img"}]', "sweep[0].width must be a multiple of 8, got 65 (nearest: 64 or 72)"),
        (b'[{"steps": 1, "steps": 2}]', "sweep must not name a field twice, got 'steps'"),
        (b'[{"guidance_scale": NaN}]', "sweep must hold finite numbers only, got 'NaN'"),
    ],
    ids=lambda value: str(value)[:40],
)
def test_a_bad_file_is_refused_with_the_entry(text, message):
    with pytest.raises(InvalidArgument) as caught:
        entries_in(text, BASE)
    assert message in str(caught.value)


def test_a_huge_file_is_refused(monkeypatch):
    monkeypatch.setattr(sweep, "MAX_FILE_BYTES", 4)
    assert entries_in(b"[{}]", BASE) == [Entry(BASE)]
    with pytest.raises(InvalidArgument, match="sweep must be a file of at most 4 bytes"):
        entries_in(b"[{}] ", BASE)


@given(
    st.lists(st.dictionaries(st.sampled_from(list(BASE.to_dict())) | st.text(max_size=4), json_values)) | json_values
)
def test_any_json_is_read_or_refused(value):
    try:
        found = entries_in(json.dumps(value).encode(), BASE)
    except InvalidArgument as error:
        assert str(error).startswith("sweep")
    else:
        assert len(found) == len(value)


def test_the_cpu_skips_what_it_cannot_rehearse():
    can, cannot = runnable(grid(BASE), Device())
    assert {(one.request.width, one.request.batch) for one in can} == {(256, 1), (256, 2), (256, 4), (512, 1)}
    assert len(can) + len(cannot) == 100
    assert {(one.error.argument, one.entry.capacity_bytes) for one in cannot} == {
        ("device", None),
        ("capacity", 16 * GIB),
    }


def test_a_card_no_larger_than_a_capacity_skips_it(nvml):
    can, cannot = runnable(grid(BASE), Device(cards()[0]))
    assert on_the_whole_card(can) == [one.request for one in can] and len(can) == 90
    assert {str(one.error) for one in cannot} == {
        "capacity must be below the GPU's memory of 14.56 GiB, got '16 GiB' (leave it out to use the whole GPU)"
    }


def test_a_sweep_without_runnable_entries_says_why():
    with pytest.raises(InvalidArgument, match="attention must be sdpa or eager on the CPU"):
        runnable([Entry(GenerationRequest(attention="xformers"))], Device())


def test_the_grid_varies_exactly_the_listed_fields():
    rows = [entry.request.to_dict() for entry in grid(BASE)]
    assert {name for name in rows[0] if len({row[name] for row in rows}) > 1} == set(VARIED)
