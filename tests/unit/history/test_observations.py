"""Measured runs, from the history's file to the planner."""

import json
import sqlite3
from dataclasses import replace

import pytest

from cache.history.curves import CurveStore
from cache.history.file import HistoryFile
from cache.history.location import anything_measured
from cache.history.migrations import migrations
from cache.history.observations import gather, observation_of
from cache.history.reference import reference_runs
from cache.history.store import Store
from cache.machine.versions import installed
from cache.records import METHOD, Measured, Measurement, Prediction
from planner.calibration.workspace_curve import FRACTIONS, PREFERRED
from planner.cards.lookup import card_named
from planner.fit import fit
from planner.programs.files import shipped
from planner.request import GenerationRequest
from planner.units import GIB
from tests.conftest import make_environment, make_measured

REQUEST = GenerationRequest(width=768, height=512, vae_tiling=True)


def current(**changes):
    return make_environment(**{name: version for name, version in installed().items()} | changes)


def a_run(request, **environment) -> Measurement:
    return Measurement(
        measurement_id="1",
        created_at="2026-12-01T00:00:00+00:00",
        request=request,
        environment=current(**environment),
        measured=make_measured(),
    )


def gathered(**options):
    return gather(shipped(), with_reference=False, **options)


def test_the_evidence_has_the_runs_of_the_store(store):
    store.save_measurement(REQUEST, current(), make_measured())
    store.save_measurement(GenerationRequest(batch=4), current(cudnn="8907"), make_measured(num_alloc_retries=3))
    store.save_measurement(REQUEST, current(emulated_bytes=8 * GIB), make_measured())
    oom = Measured(outcome="out-of-memory", peak_allocated_bytes=7 * GIB, ended_in="unet", free_before_bytes=GIB)
    store.save_measurement(
        REQUEST, make_environment(torch="2.1.0+cu121"), oom, holders=({"pid": 1, "name": "x", "used_bytes": None},)
    )
    found = gathered().evidence.observations
    assert list(found) == [observation_of(run) for run in store.measurements()]
    assert [one.kind for one in found] == ["out-of-memory", "full", "limited", "full"]
    assert [one.cudnn for one in found] == [9, 9, 8, 9]
    # At an emulated capacity a run has not the card to itself.
    assert [one.is_alone for one in found] == [False, False, True, True]
    assert [one.emulated_bytes for one in found] == [None, 8 * GIB, None, None]
    assert [one.card_name for one in found] == ["T4", "T4, 8 GiB emulated", "T4", "T4"]
    assert found[0].versions.startswith("torch 2.1.0, ")
    assert dict(found[3].stages) == {stage.stage: stage.peak_allocated_bytes for stage in make_measured().stages}


@pytest.mark.parametrize(
    "changes",
    [
        {"device_kind": "cpu", "dtype": "bfloat16"},
        {"allocator_settings": "PYTORCH_ALLOC_CONF=expandable_segments:True"},
        {"compute_capability": None},
        {"compute_capability": "new"},
    ],
)
def test_runs_that_say_nothing_of_a_gpus_memory_are_left_out(store, changes):
    store.save_measurement(REQUEST, current(**changes), make_measured())
    assert gathered().evidence.observations == ()
    assert observation_of(store.measurements()[0]) is None


@pytest.mark.parametrize("outcome", ["failed", "cancelled"])
def test_runs_that_did_not_come_to_an_end_are_left_out(store, outcome):
    store.save_measurement(REQUEST, current(), make_measured(outcome=outcome))
    assert gathered().evidence.observations == ()


def test_a_measured_run_answers_the_same_request_and_calibrates_others(store):
    raw = fit(REQUEST, card_named("T4"), "dry-run")
    sizes = {"peak_allocated_bytes": raw.peak_allocated_bytes - 2**20, "peak_reserved_bytes": raw.peak_reserved_bytes}
    for _ in range(3):
        store.save_measurement(REQUEST, current(), make_measured(**sizes, stages=()))
    evidence = gathered().evidence
    assert fit(REQUEST, card_named("T4"), evidence=evidence).basis == "measured"
    assert fit(replace(REQUEST, width=1024), card_named("T4"), evidence=evidence).basis == "calibrated"
    assert fit(replace(REQUEST, width=1024), card_named("A10"), evidence=evidence).basis == "dry-run"


def test_without_a_history_there_are_the_reference_runs_unless_switched_off(own_history):
    found = gather(shipped()).evidence.observations
    assert len(found) == len(reference_runs()) and all(one.is_reference for one in found)
    assert gathered().evidence.observations == ()
    assert not own_history.exists()


def test_what_cannot_have_been_measured_is_known_without_reading(own_history):
    ada, hopper, pascal = ((8, 9),), ((9, 0),), ((6, 0),)
    assert anything_measured(ada) and anything_measured(pascal)
    assert not anything_measured(hopper)
    assert not anything_measured(ada, with_reference=False)
    Store(own_history)
    assert anything_measured(hopper)


def test_a_history_that_cannot_be_used_is_a_notice(own_history, tmp_path, monkeypatch):
    Store(own_history)
    content = own_history.read_bytes()
    own_history.write_bytes(content[:100] + b"nonsense" * 1000)
    found = gathered()
    assert found.evidence.observations == ()
    [aside] = Store(own_history).damaged_files()
    assert found.notice == f"the history was damaged and was set aside as {aside}; a new one was started"
    assert gathered().notice is None
    monkeypatch.setenv("PLANNER_DB", str(tmp_path))
    found = gather(shipped())
    assert "cannot be opened" in found.notice
    assert len(found.evidence.observations) == len(reference_runs())


def test_an_older_history_is_brought_up(own_history):
    from sqlite_utils import Database

    db = Database(own_history)
    migrations.apply(db, stop_before="m006_origins")
    db.close()
    assert gathered().notice is None
    assert HistoryFile(own_history).moved_aside is None


def test_a_history_of_the_schema_before_is_brought_up(own_history):
    from sqlite_utils import Database

    db = Database(own_history)
    migrations.apply(db, stop_before="m008_emulated_capacities")
    db.close()
    assert gathered().notice is None
    db = Database(own_history)
    assert "emulated_bytes" in db["environments"].columns_dict
    db.close()


# Curves


def observations(store, count: int = 3):
    for width in range(count):
        store.save_measurement(replace(REQUEST, width=512 + 64 * width), current(), make_measured())
    return gathered().evidence.observations


def test_curves_are_made_once_and_kept_in_the_history(store, monkeypatch):
    asked, reports = observations(store), []
    first = CurveStore(shipped(), store.path)
    curves = first.curves_of(asked, lambda done, of: reports.append((done, of)))
    assert reports == [(0, 3), (1, 3), (2, 3)]
    assert set(curves) == {one.run_id for one in asked}
    monkeypatch.setattr("cache.history.curves.curve_of", None)
    assert first.curves_of(asked) == curves
    again = CurveStore(shipped(), store.path).curves_of(asked)
    for run_id, curve in again.items():
        assert curve.peak_stage == curves[run_id].peak_stage
        assert curve.stages["unet"][PREFERRED] == curves[run_id].stages["unet"][PREFERRED]


def test_repeated_runs_share_a_curve(store):
    for steps in (20, 50):
        store.save_measurement(replace(REQUEST, steps=steps), current(), make_measured())
    curves = CurveStore(shipped(), store.path).curves_of(gathered().evidence.observations)
    [one, other] = curves.values()
    assert one is other


WHOLE = len(FRACTIONS)
DAMAGES = [
    "nonsense",
    "[]",
    "{}",
    '{"unet": [1], "reserved": [1]}',
    json.dumps({"reserved": [1] * WHOLE}),
    json.dumps({"unet": [0] * WHOLE, "reserved": [0] * WHOLE}),
    json.dumps({"unet": [float("nan")] * WHOLE, "reserved": [1] * WHOLE}),
    json.dumps({"unet": [None] * WHOLE, "reserved": [1] * WHOLE}),
    json.dumps({"unet": [10**400] * WHOLE, "reserved": [1] * WHOLE}),
    json.dumps({"decoder": [1] * WHOLE, "reserved": [1] * WHOLE}),
    "[" * 100_000,
]


@pytest.mark.parametrize("damage", DAMAGES, ids=range(len(DAMAGES)))
def test_a_damaged_curve_is_made_again(store, damage):
    asked = observations(store, 1)
    curves = CurveStore(shipped(), store.path).curves_of(asked)
    db = sqlite3.connect(store.path)
    with db:
        db.execute("update curves set numbers = ?", [damage])
    again = CurveStore(shipped(), store.path).curves_of(asked)
    assert again[asked[0].run_id].to_dict() == curves[asked[0].run_id].to_dict()
    assert json.loads(db.execute("select numbers from curves").fetchone()[0]) == curves[asked[0].run_id].to_dict()
    db.close()


def test_without_a_file_curves_are_made_all_the_same(store, tmp_path):
    asked = observations(store, 1)
    for path in (None, tmp_path / "nowhere.db"):
        assert set(CurveStore(shipped(), path).curves_of(asked)) == {asked[0].run_id}
    assert CurveStore(None, None).curves_of(asked) == {}


def test_bytes_that_are_no_text_do_not_cost_the_history(store):
    store.save_measurement(REQUEST, current(), make_measured())
    store.save_measurement(replace(REQUEST, width=512), current(driver="1"), make_measured())
    db = sqlite3.connect(store.path)
    with db:
        db.execute("update environments set transformers = null, driver = cast(x'ff' as text) where driver = '1'")
    db.close()
    found = gathered().evidence.observations
    assert len(found) == 2
    assert "transformers unknown" in found[0].versions


@pytest.mark.parametrize(
    "damage",
    ["update requests set width = 3 where width = 512", "update measurements set holders = '[' where id = :id"],
)
def test_a_run_that_can_no_longer_be_read_does_not_cost_the_others(store, damage):
    kept = store.save_measurement(REQUEST, current(), make_measured())
    broken = store.save_measurement(replace(REQUEST, width=512), current(), make_measured())
    db = sqlite3.connect(store.path)
    with db:
        db.execute(damage, {"id": broken})
    db.close()
    assert [one.run_id for one in gathered().evidence.observations] == [kept]
    with pytest.raises(ValueError):
        store.measurements()


def test_many_runs_have_their_own_stages_and_predictions(store, monkeypatch):
    """Of many runs the parts are read in another way, which must give the same."""
    told = [Prediction.of(fit(REQUEST, card_named("T4"), basis)) for basis in ("dry-run", "formula")]
    for number in (1, 2):
        stages = make_measured().stages[number:]
        store.save_measurement(REQUEST, current(), make_measured(stages=stages), predictions=tuple(told[:number]))
    few = store.measurements()
    monkeypatch.setattr("cache.history.reader._MANY", 1)
    assert store.measurements() == few
    assert [run.predictions for run in few] == [tuple(told), tuple(told[:1])]
    assert [run.measured.stages for run in few] == [make_measured().stages[number:] for number in (2, 1)]


def test_a_run_measured_by_another_method_is_left_out(store):
    store.save_measurement(REQUEST, current(method=METHOD + 1), make_measured())
    assert gathered().evidence.observations == ()
    assert observation_of(store.measurements()[0]) is None


def test_a_published_run_that_was_imported_counts_once(store):
    whole = [run for run in reference_runs() if run.scope == "pipeline"]
    store.import_measurements([replace(run, origin="imported") for run in whole])
    assert len(gather(shipped()).evidence.observations) == len(reference_runs())


def test_a_published_run_that_filled_its_gpu_calibrates_nothing():
    """T4, 512x512 batch 16: what preferred kernels reserve is more than a T4 has."""
    evidence = gather(shipped()).evidence
    runs = evidence.with_curves([one for one in evidence.observations if one.model == "T4"])
    calibrating = {
        run.observation.request.batch: run.calibrates for run in runs if run.observation.request.task == "txt2img"
    }
    assert calibrating == {1: True, 4: True, 16: False}


@pytest.mark.parametrize(
    ("options", "environment"),
    [
        ({"dtype": "bfloat16"}, {"dtype": "bfloat16", "compute_capability": "8.0"}),
        ({"dtype": "float32"}, {"dtype": "float32"}),
        ({"allocator": "expandable"}, {"allocator_settings": "PYTORCH_ALLOC_CONF=expandable_segments:True"}),
        ({"attention": "eager"}, {"attention": "eager"}),
    ],
)
def test_a_run_counts_if_it_ran_as_its_request_asks(options, environment):
    request = GenerationRequest.from_dict(options)
    kept = observation_of(a_run(request, **environment))
    assert kept is not None
    # The request already says which attention, so that the same request finds the run.
    assert kept.attention == "sdpa"
    assert observation_of(a_run(request)) is None


def test_a_published_run_of_another_attention_keeps_it():
    kept = observation_of(a_run(REQUEST, attention="eager"))
    assert kept is not None and kept.attention == "eager"
    assert observation_of(a_run(REQUEST, dtype="bfloat16")) is None


def test_a_run_whose_kernels_have_no_rule_has_no_curve(store):
    for request, changes in ((REQUEST, {}), (GenerationRequest(dtype="bfloat16"), {"dtype": "bfloat16"})):
        store.save_measurement(request, current(compute_capability="7.5", **changes), make_measured())
    found = gathered().evidence.observations
    assert len(found) == 2
    assert len(CurveStore(shipped(), store.path).curves_of(found)) == 1
