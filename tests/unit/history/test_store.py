import errno
import json
import os
import re
import sqlite3
import subprocess
import sys
import threading
from contextlib import closing
from dataclasses import asdict, replace
from pathlib import Path

import pytest
from sqlite_utils import Database

from cache.history.location import HistoryError, default_path
from cache.history.migrations import migrations
from cache.history.observations import gather
from cache.history.schema import APPLICATION_ID, STEPS, NotOurs
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


def as_of(path: Path, step: str, environment) -> None:
    """Make a history of the schema before a step, with runs, their parts and a job, as far as it had tables."""
    with closing(Database(path)) as db:
        migrations.apply(db, stop_before=step)
        tables = set(db.table_names())
        values = {name: value for name, value in asdict(environment).items() if name != "emulated_bytes"}
        environment_id = content_id(values)
        if "environments" in tables:
            columns = db["environments"].columns_dict
            db["environments"].insert({"id": environment_id} | {k: v for k, v in values.items() if k in columns})
            record = {k: v for k, v in REQUEST.to_record().items() if k in db["requests"].columns_dict}
            db["requests"].insert({"id": REQUEST.request_id} | record)
        if "measurements" in tables:
            row = {"request_id": REQUEST.request_id, "environment_id": environment_id, "outcome": "ok", "holders": "[]"}
            for number in range(3):
                of = {"measurement_id": f"run-{number}"}
                at = {"id": f"run-{number}", "created_at": f"2026-01-0{number + 1}", "peak_allocated_bytes": number + 5}
                db["measurements"].insert(row | at)
                db["stages"].insert(of | {"stage": "unet", "peak_allocated_bytes": number + 5, "seconds": 1.5})
                told = {"basis": "formula", "verdict": "fits", "need_bytes": 7, "stages": '{"unet": 4}'}
                db["predictions"].insert(of | told)
        if "jobs" in tables:
            job = {"id": "job", "request": json.dumps(REQUEST.to_dict()), "request_id": REQUEST.request_id}
            job |= {"environment_id": environment_id, "state": "queued", "owner": "gone", "created_at": "2026-01-01"}
            db["jobs"].insert(job)


def check_data_of(store: Store, step: str, environment) -> None:
    if step > "m002_measurements":
        runs = store.measurements()
        assert [run.measurement_id for run in runs] == ["run-2", "run-1", "run-0"]
        assert [run.measured.peak_allocated_bytes for run in runs] == [7, 6, 5]
        for run in runs:
            assert (run.request, run.environment, run.origin) == (REQUEST, environment, "own")
            assert run.measured.stages[0].seconds == 1.5
            assert run.predictions[0].stages == {"unet": 4}
    if step > "m004_jobs":
        assert [row["id"] for row in store.open_jobs()] == ["job"]


def test_the_steps_are_named_where_no_library_is_loaded():
    assert [step.name for step in migrations._migrations] == list(STEPS)


@pytest.mark.parametrize("step", STEPS)
def test_each_older_schema_is_brought_up_with_its_data_and_kept_as_a_copy(tmp_path, environment, step):
    path = tmp_path / "old.db"
    as_of(path, step, environment)
    path.chmod(0o640)
    store = Store(path)
    check_data_of(store, step, environment)
    store.save_measurement(REQUEST, environment, make_measured())
    assert len(store.measurements()) == 1 + 3 * (step > "m002_measurements")
    if step == STEPS[0]:
        # There was nothing to keep.
        assert store.kept_copies() == []
        return
    [copy] = store.kept_copies()
    assert copy.name.startswith("old.db.before-") and copy.name.endswith(STEPS[STEPS.index(step) - 1])
    assert copy.stat().st_mode & 0o777 == 0o640
    with closing(Database(copy)) as db:
        assert [done.name for done in migrations.applied(db)] == list(STEPS[: STEPS.index(step)])
    # The copy is a history like any other.
    check_data_of(Store(copy), step, environment)
    assert Store(path).kept_copies() == [copy]


def test_only_the_last_two_copies_are_kept(own_history, environment):
    copies = []
    for _ in range(4):
        Path(own_history).unlink(missing_ok=True)
        as_of(own_history, STEPS[-1], environment)
        copies.append(Store(own_history).kept_copies()[-1])
    assert Store(own_history).kept_copies() == copies[-2:]


def test_a_history_that_cannot_be_copied_is_not_updated(own_history, environment, monkeypatch):
    as_of(own_history, STEPS[-1], environment)
    before = own_history.read_bytes()

    def full(self, path):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Store, "copy_to", full)
    with pytest.raises(HistoryError, match=r"cannot be opened \(No space left on device\) - free space"):
        Store(own_history)
    with closing(Database(own_history)) as db:
        assert [done.name for done in migrations.applied(db)] == list(STEPS[:-1])
    assert before[:16] == own_history.read_bytes()[:16] and not list(own_history.parent.glob("*.before-*"))


def test_a_newer_schema_is_refused_by_name_by_whoever_reads_it(own_history, store):
    db = Database(own_history)
    db["_sqlite_migrations"].insert(
        {"migration_set": "will_it_fit", "name": "m999_the_future", "applied_at": "2030-01-01"}
    )
    db.close()
    said = r"written by a newer version .*m999_the_future.* upgrade"
    with pytest.raises(HistoryError, match=said):
        Store(own_history)
    # As `fit` reads it, which stands without a history.
    assert re.search(said, str(gather(None, with_reference=False).notice))


def files_in(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def foreign_database(path: Path, *, wal: bool = False) -> None:
    with closing(sqlite3.connect(path)) as db:
        if wal:
            db.execute("pragma journal_mode = wal")
        db.execute("create table bookmarks (title text)")
        db.execute("insert into bookmarks values ('mine')")
        db.commit()


@pytest.mark.parametrize(
    "content",
    [b"dear diary\n", b"\0" * 9000, b"SQLite format 3\x00" + b"\xff" * 5000, b"{}", "database", "wal", "code"],
    ids=["text", "zeros", "header", "json", "database", "wal", "code"],
)
def test_a_file_that_was_never_a_history_is_left_as_it_is(tmp_path, monkeypatch, content):
    folder = tmp_path / "folder"
    folder.mkdir()
    path = folder / "notes"
    if content in ("database", "wal"):
        foreign_database(path, wal=content == "wal")
    elif content == "code":
        path.write_bytes((ROOT / "cache/history/schema.py").read_bytes())
    else:
        path.write_bytes(content)
    before = files_in(folder)
    monkeypatch.setenv("PLANNER_DB", str(path))
    with pytest.raises(NotOurs, match=r"is no history .* left as it is - set PLANNER_DB"):
        Store()
    assert "left as it is" in str(gather(None, with_reference=False).notice)
    assert files_in(folder) == before


def test_an_empty_file_becomes_a_history(own_history, environment):
    own_history.touch()
    Store(own_history).save_measurement(REQUEST, environment, make_measured())
    assert len(Store(own_history).measurements()) == 1


def test_a_copy_of_a_history_in_use_is_whole(own_history, store, environment, tmp_path):
    for _ in range(5):
        store.save_measurement(REQUEST, environment, make_measured())
    copy = tmp_path / "copy.db"
    copy.touch()
    with closing(sqlite3.connect(own_history)) as writer:
        # Somebody is in the middle of a change.
        writer.execute("begin immediate")
        writer.execute("delete from measurements")
        store.copy_to(copy)
        writer.rollback()
    assert Store(copy).measurements() == store.measurements() and len(store.measurements()) == 5


def test_each_deletion_and_import_has_a_line_of_the_audit(store, environment):
    run_id = store.save_measurement(REQUEST, environment, make_measured())
    [run] = store.measurements()
    assert store.audit() == []
    store.delete_measurement(run_id)
    store.import_measurements([run])
    store.import_measurements([run])
    store.add_recovered([run])
    lines = store.audit()
    told = [("delete", 1, run_id), ("import", 1, "0 were known"), ("import", 0, "1 were known")]
    assert [(line.action, line.runs, line.detail) for line in lines] == [*told, ("recover", 0, "1 were known")]
    assert all(line.who.endswith(f"process {os.getpid()}") for line in lines)
    assert [line.at for line in lines] == sorted(line.at for line in lines)


def test_a_deletion_without_its_line_is_none(store, environment, monkeypatch):
    run_id = store.save_measurement(REQUEST, environment, make_measured())

    def refused(*_):
        raise OSError("no line")

    monkeypatch.setattr(Store, "_audit", refused)
    with pytest.raises(OSError, match="no line"):
        store.delete_measurement(run_id)
    assert len(store.measurements()) == 1


def test_jobs_of_a_planner_that_ended_are_listed_until_they_are_settled(store, environment):
    for name in ("waits", "runs"):
        store.add_job(name, REQUEST, environment, "gone")
    store.start_job("runs")
    assert store.stopped_jobs() == []
    assert [store.close_orphan(row) for row in store.open_jobs()] == [True, True]
    assert not store.close_orphan({"id": "waits"})
    assert [run.measured.outcome for run in store.measurements()] == ["failed", "cancelled"]
    stopped = store.stopped_jobs()
    assert [job.job_id for job in stopped] == ["waits", "runs"]
    assert {(job.request, job.environment) for job in stopped} == {(REQUEST, environment)}
    store.settle_stopped(["waits"])
    assert [job.job_id for job in store.stopped_jobs()] == ["runs"]


@pytest.fixture
def at_default(tmp_path, monkeypatch):
    """Unset PLANNER_DB, and return the default location in a folder of the test."""
    monkeypatch.delenv("PLANNER_DB")
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))
    path = default_path()
    path.parent.mkdir(parents=True)
    assert tmp_path in path.parents
    return path


@pytest.mark.parametrize("damage", [b"not a database", b"SQLite format 3\x00" + b"\xff" * 5000])
def test_what_is_damaged_at_the_default_location_is_set_aside_never_deleted(at_default, damage):
    at_default.write_bytes(damage)
    store = Store()
    assert store.moved_aside.read_bytes() == damage
    assert store.damaged_files() == [store.moved_aside]
    assert store.measurements() == [] and Store().moved_aside is None


def content_of_a_history(path, environment, application_id: int | None = None) -> bytearray:
    """The bytes of a history whose log was written back into it, as one of before there was an id where 0 is given."""
    store = Store(path)
    for _ in range(40):
        store.save_measurement(REQUEST, environment, make_measured())
    with closing(sqlite3.connect(path)) as db:
        if application_id is not None:
            db.execute(f"pragma application_id = {application_id}")
        db.execute("pragma wal_checkpoint(truncate)")
    return bytearray(path.read_bytes())


@pytest.mark.parametrize(("begin", "end"), [(0, 100), (0, 4096), (100, 4096), (100, 8192)])
@pytest.mark.parametrize("application_id", [0, APPLICATION_ID])
def test_a_damaged_history_is_set_aside_never_deleted(own_history, environment, begin, end, application_id):
    damage = content_of_a_history(own_history, environment, application_id)
    damage[begin:end] = b"\x55" * (end - begin)
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
