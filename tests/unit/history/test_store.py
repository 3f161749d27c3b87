import json
import sqlite3
import subprocess
import sys
import threading
from dataclasses import asdict, replace
from pathlib import Path

import pytest
from sqlite_utils import Database

from cache.history.file import HistoryError
from cache.history.migrations import migrations
from cache.history.store import Store
from cache.machine.versions import installed
from cache.records import Measured, Prediction, content_id
from planner.cards.lookup import card_named
from planner.components import MODEL_ID, SD_V15
from planner.fit import fit
from planner.request import GenerationRequest
from planner.units import GIB
from tests.conftest import ROOT, make_environment, make_measured

REQUEST = GenerationRequest(width=1024, height=768)


def test_a_run_comes_back_as_it_went_in(store, environment):
    predictions = (Prediction.of(fit(REQUEST, card_named("T4"))),)
    holders = ({"pid": 7, "name": "python", "used_bytes": None},)
    run_id = store.save_measurement(REQUEST, environment, make_measured(), predictions=predictions, holders=holders)
    (found,) = store.measurements()
    assert found.measurement_id == run_id
    assert found.request == REQUEST
    assert found.environment == environment
    assert found.measured == make_measured()
    assert found.predictions == predictions
    assert found.holders == holders
    assert json.loads(json.dumps(found.to_dict()))["request"]["width"] == 1024


@pytest.mark.parametrize("outcome", ["ok", "out-of-memory", "cancelled", "failed"])
def test_every_outcome_is_kept(store, environment, outcome):
    measured = Measured(outcome=outcome, reason="why", ended_in="unet")
    store.save_measurement(REQUEST, environment, measured)
    assert store.measurements()[0].measured == measured


def test_the_newest_comes_first(store, environment):
    ids = [store.save_measurement(REQUEST, environment, make_measured()) for _ in range(3)]
    assert [run.measurement_id for run in store.measurements()] == ids[::-1]


def test_repeats_share_their_request_and_environment(store, environment, own_history):
    for _ in range(3):
        store.save_measurement(REQUEST, environment, make_measured())
    db = Database(own_history)
    assert (db["measurements"].count, db["requests"].count, db["environments"].count) == (3, 1, 1)
    db.close()


def test_the_same_request_is_answered_by_its_newest_answer(store, environment):
    assert store.already_measured(REQUEST, environment) is None
    store.save_measurement(REQUEST, environment, Measured(outcome="failed"))
    store.save_measurement(REQUEST, environment, Measured(outcome="cancelled"))
    assert store.already_measured(REQUEST, environment) is None
    first = store.save_measurement(REQUEST, environment, make_measured())
    second = store.save_measurement(REQUEST, environment, Measured(outcome="out-of-memory"))
    assert store.already_measured(REQUEST, environment).measurement_id == second != first


def test_a_rounded_size_is_the_same_request(store, environment):
    store.save_measurement(GenerationRequest(width=515), environment, make_measured())
    assert store.already_measured(GenerationRequest(), environment)
    assert store.measurements()[0].request.width == 512


@pytest.mark.parametrize(
    "change", ["torch", "diffusers", "driver", "uuid_hash", "weights", "allocator_settings", "attention"]
)
def test_another_key_is_measured_again(store, environment, change):
    store.save_measurement(REQUEST, environment, make_measured())
    assert store.already_measured(REQUEST, replace(environment, **{change: "other"})) is None


def test_a_card_that_others_filled_says_nothing_of_an_empty_one(store, environment):
    squeezed = Measured(outcome="out-of-memory", free_before_bytes=2 * GIB)
    store.save_measurement(REQUEST, environment, squeezed)
    assert store.already_measured(REQUEST, environment, free_bytes=2 * GIB)
    assert store.already_measured(REQUEST, environment, free_bytes=14 * GIB) is None
    tight = make_measured(num_alloc_retries=1, free_before_bytes=2 * GIB)
    store.save_measurement(REQUEST, environment, tight)
    assert store.already_measured(REQUEST, environment, free_bytes=14 * GIB) is None
    holders = ({"pid": 1, "name": "python", "used_bytes": GIB},)
    store.save_measurement(REQUEST, environment, squeezed, holders=holders)
    assert store.already_measured(REQUEST, environment).measured == tight


def test_an_emulated_capacity_is_another_key(store, environment):
    emulated = [replace(environment, emulated_bytes=size * GIB) for size in (8, 12)]
    store.save_measurement(REQUEST, environment, make_measured())
    assert all(store.already_measured(REQUEST, one) is None for one in emulated)
    run_id = store.save_measurement(REQUEST, emulated[0], make_measured())
    assert store.already_measured(REQUEST, emulated[0]).measurement_id == run_id
    assert store.already_measured(REQUEST, emulated[0]).environment == emulated[0]
    assert store.already_measured(REQUEST, emulated[1]) is None
    assert store.already_measured(REQUEST, environment).environment == environment


def test_what_is_free_beyond_an_emulated_capacity_is_no_reason_to_measure_again(store, environment):
    environment = replace(environment, emulated_bytes=8 * GIB)
    store.save_measurement(REQUEST, environment, Measured(outcome="out-of-memory", free_before_bytes=7 * GIB))
    assert store.already_measured(REQUEST, environment, free_bytes=14 * GIB)
    store.save_measurement(REQUEST, environment, Measured(outcome="out-of-memory", free_before_bytes=5 * GIB))
    # The newer of the two had less than the emulated capacity, since others held the rest.
    found = store.already_measured(REQUEST, environment, free_bytes=14 * GIB)
    assert found.measured.free_before_bytes == 7 * GIB


def test_rows_from_before_there_were_emulated_capacities_keep_their_key(own_history, environment):
    """As they stand in a file of the schema before: no column, and a hash without it."""
    db = Database(own_history)
    migrations.apply(db, stop_before="m008_emulated_capacities")
    assert "emulated_bytes" not in db["environments"].columns_dict
    values = {name: value for name, value in asdict(environment).items() if name != "emulated_bytes"}
    db["environments"].insert({"id": content_id(values)} | values)
    db["requests"].insert({"id": REQUEST.request_id} | REQUEST.to_record())
    row = {"id": "old", "request_id": REQUEST.request_id, "environment_id": content_id(values)}
    db["measurements"].insert(row | {"created_at": "2026-01-01", "outcome": "ok", "holders": "[]"})
    db.close()
    store = Store(own_history)
    assert store.already_measured(REQUEST, environment).measurement_id == "old"
    assert store.already_measured(REQUEST, replace(environment, emulated_bytes=8 * GIB)) is None
    store.save_measurement(REQUEST, environment, make_measured())
    db = Database(own_history)
    assert db["environments"].count == 1
    db.close()


def test_another_build_of_the_same_release_is_not_stale(store):
    versions = installed() | {"torch": "2.13.0"}
    store.save_measurement(REQUEST, make_environment(**versions), make_measured())
    assert not store.measurements()[0].is_stale(versions | {"torch": "2.13.0+cpu"})


def test_a_file_that_vanished_does_not_come_back_without_its_tables(own_history, environment):
    store = Store(own_history)
    for path in own_history.parent.glob("planner.db*"):
        path.unlink()
    with pytest.raises(HistoryError, match=r"cannot be written \(unable to open database file\) - it was moved"):
        store.save_measurement(REQUEST, environment, make_measured())
    assert not own_history.exists()
    Store(own_history).save_measurement(REQUEST, environment, make_measured())


def test_a_home_that_does_not_exist_is_a_message(monkeypatch):
    monkeypatch.setenv("PLANNER_DB", "~nosuchuser/planner.db")
    with pytest.raises(HistoryError, match="PLANNER_DB names no home directory"):
        Store()


def test_a_rehearsal_of_another_machine_does_not_answer(store):
    """A card has a key that is its own; one CPU is not another."""
    for kind, uuid_hash, answers in (("cpu", None, False), ("cuda", "0123456789abcdef", True)):
        environment = make_environment(device_kind=kind, uuid_hash=uuid_hash)
        own = store.save_measurement(REQUEST, environment, make_measured())
        [run] = [run for run in store.measurements() if run.measurement_id == own]
        store.delete_measurement(own)
        assert store.import_measurements([run]).added == 1
        assert (store.already_measured(REQUEST, environment) is not None) == answers


def test_what_only_the_worker_knows_is_no_part_of_the_key(store, environment):
    store.save_measurement(REQUEST, environment, make_measured())
    asked = replace(environment, cuda=None, cudnn=None, total_bytes=1, compute_capability=None)
    assert store.already_measured(REQUEST, asked)


def test_a_row_of_other_versions_is_stale(store):
    store.save_measurement(REQUEST, make_environment(**installed()), make_measured())
    store.save_measurement(REQUEST, make_environment(**installed() | {"torch": "1.0"}), make_measured())
    assert [run.is_stale(installed()) for run in store.measurements()] == [True, False]


def test_model_facts_are_kept_by_version(store):
    counts = {name: (count, 2 * count) for name, count in SD_V15.parameters.items()}
    assert store.model_facts(MODEL_ID, installed()) is None
    store.save_model_facts(MODEL_ID, installed(), counts)
    store.save_model_facts(MODEL_ID, installed(), counts)
    assert dict(store.model_facts(MODEL_ID, installed()).parameters) == dict(SD_V15.parameters)
    assert store.model_facts(MODEL_ID, installed() | {"diffusers": "0.1"}) is None


def test_deleting_a_run_takes_its_parts_and_leaves_the_others(store, environment, own_history):
    predictions = (Prediction.of(fit(REQUEST, card_named("T4"))),)
    gone, stays = (
        store.save_measurement(REQUEST, environment, make_measured(), predictions=predictions) for _ in range(2)
    )
    store.delete_measurement(gone)
    assert [run.measurement_id for run in store.measurements()] == [stays]
    db = Database(own_history)
    for table in ("stages", "predictions"):
        assert {row["measurement_id"] for row in db[table].rows} == {stays}
    db.close()


def test_tables_refuse_wrong_types(own_history, store):
    db = sqlite3.connect(own_history)
    with pytest.raises(sqlite3.IntegrityError, match=r"cannot store TEXT value in INTEGER column"):
        db.execute("insert into requests (id, width) values ('x', 'wide')")
    db.close()


def test_opening_twice_changes_nothing(own_history, environment):
    Store(own_history).save_measurement(REQUEST, environment, make_measured())
    assert len(Store(own_history).measurements()) == 1


def test_each_older_schema_is_brought_up(tmp_path, environment):
    names = [step.name for step in migrations._migrations]
    for stop_before in names:
        path = tmp_path / f"{stop_before}.db"
        db = Database(path)
        migrations.apply(db, stop_before=stop_before)
        db.close()
        store = Store(path)
        store.save_measurement(REQUEST, environment, make_measured())
        assert len(store.measurements()) == 1


def test_a_newer_schema_is_refused_by_name(own_history, store):
    db = Database(own_history)
    db["_sqlite_migrations"].insert(
        {"migration_set": "will_it_fit", "name": "m999_the_future", "applied_at": "2030-01-01"}
    )
    db.close()
    with pytest.raises(HistoryError, match=r"written by a newer version .*m999_the_future.* upgrade"):
        Store(own_history)


@pytest.mark.parametrize("damage", [b"not a database", b"SQLite format 3\x00" + b"\xff" * 5000])
def test_a_damaged_file_is_set_aside_never_deleted(own_history, damage):
    own_history.write_bytes(damage)
    store = Store(own_history)
    assert store.moved_aside.read_bytes() == damage
    assert store.damaged_files() == [store.moved_aside]
    assert store.measurements() == []
    assert Store(own_history).moved_aside is None


def test_a_file_damaged_in_the_middle_is_noticed(own_history, environment):
    store = Store(own_history)
    for _ in range(200):
        store.save_measurement(REQUEST, environment, make_measured())
    db = sqlite3.connect(own_history)
    db.execute("pragma wal_checkpoint(truncate)")
    db.close()
    content = bytearray(own_history.read_bytes())
    content[8192 : 8192 * 4] = b"\x55" * (8192 * 3)
    own_history.write_bytes(content)
    assert Store(own_history).moved_aside is not None


@pytest.mark.parametrize("name", ["", ".", "/", "/dev/null", "x" * 300, "a-file/planner.db"])
def test_a_file_that_may_not_be_written_is_a_message_and_nothing_is_left_beside_it(tmp_path, monkeypatch, name):
    inside = tmp_path / "inside"
    inside.mkdir()
    monkeypatch.chdir(inside)
    (tmp_path / "a-file").touch()
    before = sorted(tmp_path.iterdir())
    path = Path(name) if name in (".", "/") else tmp_path / name
    for opened in (lambda: Store(path), Store):
        monkeypatch.setenv("PLANNER_DB", str(path))
        with pytest.raises(HistoryError, match=r"cannot be opened .* set PLANNER_DB"):
            opened()
    assert sorted(tmp_path.iterdir()) == before
    assert not list(inside.iterdir()) and not Path("/dev/null.lock").exists()


def test_many_processes_may_start_at_once(own_history):
    code = "import sys; from cache.history.store import Store; Store(sys.argv[1])"
    command = [sys.executable, "-c", code, str(own_history)]
    started = [subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True) for _ in range(8)]
    problems = [process.communicate()[1] for process in started if process.wait() or process.stderr]
    assert [problem for problem in problems if problem] == []
    assert len(migrations.applied(Database(own_history))) == len(migrations._migrations)


def test_many_threads_may_read_and_write_at_once(own_history, environment):
    store, problems = Store(own_history), []

    def work() -> None:
        try:
            for _ in range(10):
                store.save_measurement(REQUEST, environment, make_measured())
                store.measurements()
        except Exception as error:
            problems.append(error)

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert problems == []
    assert len(store.measurements()) == 80


def test_a_failed_write_leaves_nothing(store, environment, monkeypatch):
    broken = Prediction.of(fit(REQUEST, card_named("T4")))
    with pytest.raises(sqlite3.IntegrityError):
        store.save_measurement(REQUEST, environment, make_measured(), predictions=(broken, broken))
    assert store.measurements() == []
