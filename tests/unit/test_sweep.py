import itertools
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cache import sweep
from cache.device import Device
from cache.sweep import grid, in_order, requests_in, runnable
from planner.errors import InvalidArgument
from planner.request import GenerationRequest
from tests.unit.strategies import requests
from tests.unit.test_exchange import json_values

BASE = GenerationRequest(steps=4, prompt_tokens=9)


def test_the_grid_covers_each_size_batch_and_option():
    found = grid(BASE)
    assert len(found) == len(set(found)) == 90
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


def test_what_needs_the_same_model_stands_together_and_small_before_large():
    models = [(one.channels_last, one.safety_checker, one.offload) for one in in_order(grid(BASE))]
    changes = sum(one != other for one, other in itertools.pairwise(models))
    assert changes == len(set(models)) - 1
    pixels = [one.width * one.height * one.batch for one in in_order(grid(BASE)) if not one.channels_last]
    assert pixels == sorted(pixels)


@given(st.lists(requests(), max_size=20))
def test_ordering_loses_nothing(found):
    assert sorted(map(hash, in_order(found))) == sorted(map(hash, found))
    # As the queue's worker is kept: one model for all tasks, unless it is offloaded.
    models = [
        (one.safety_checker, one.channels_last, one.offload, one.task if one.offload == "model" else None)
        for one in in_order(found)
    ]
    changes = sum(one != other for one, other in itertools.pairwise(models))
    assert changes == max(0, len(set(models)) - 1)


def test_an_entry_says_what_differs():
    found = requests_in(b'[{}, {"width": 64, "guidance_scale": 1}, {"task": "txt2img"}]', BASE)
    assert found == [
        BASE,
        GenerationRequest(width=64, guidance_scale=1, steps=4, prompt_tokens=9),
        GenerationRequest(task="txt2img", steps=4, prompt_tokens=9),
    ]


@pytest.mark.parametrize(
    ("text", "message"),
    [
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
        requests_in(text, BASE)
    assert message in str(caught.value)


def test_a_file_may_not_be_endless(monkeypatch):
    monkeypatch.setattr(sweep, "MAX_FILE_BYTES", 4)
    assert requests_in(b"[{}]", BASE) == [BASE]
    with pytest.raises(InvalidArgument, match="sweep must be a file of at most 4 bytes"):
        requests_in(b"[{}] ", BASE)


@given(
    st.lists(st.dictionaries(st.sampled_from(list(BASE.to_dict())) | st.text(max_size=4), json_values)) | json_values
)
def test_any_json_is_read_or_refused(value):
    try:
        found = requests_in(json.dumps(value).encode(), BASE)
    except InvalidArgument as error:
        assert str(error).startswith("sweep")
    else:
        assert len(found) == len(value)


def test_the_cpu_takes_what_it_can_rehearse():
    can, cannot = runnable(grid(BASE), Device())
    assert {(one.width, one.batch) for one in can} == {(256, 1), (256, 2), (256, 4), (512, 1)}
    assert len(can) + len(cannot) == 90
    assert {one.error.argument for one in cannot} == {"device"}


def test_a_sweep_of_which_nothing_can_run_says_why():
    with pytest.raises(InvalidArgument, match="offload must be none on the CPU"):
        runnable([GenerationRequest(offload="model")], Device())
