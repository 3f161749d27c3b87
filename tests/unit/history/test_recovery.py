"""Damaged histories: what is saved of them is what was kept, to the byte, and as much of it as can be read."""

import json
import random
import shutil
import sqlite3
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sqlite_utils import Database

from cache.history.migrations import migrations
from cache.history.recovery import salvage
from cache.history.sqlite_pages import MAGIC, Pages, wal_pages
from cache.history.store import Store
from cache.records import Measurement, Prediction
from planner.cards.lookup import card_named
from planner.cli.main import main
from planner.errors import InvalidArgument
from planner.fit import fit
from planner.request import GenerationRequest
from tests.conftest import make_environment, make_measured
from tests.unit.exchange.test_lines import RUN
from tests.unit.run_strategies import runs

PAGE = 4096
TOLD = tuple(Prediction.of(fit(GenerationRequest(), card_named("T4"), basis)) for basis in ("formula", "dry-run"))
TABLES = ("requests", "environments", "measurements", "stages", "predictions")


def fill(path: Path, count: int = 50) -> dict[str, Measurement]:
    """A history of runs of various requests on various cards; they by their ids."""
    store = Store(path)
    store.import_measurements([replace(RUN, source="a T4 elsewhere")])
    for number in range(count - 1):
        changes = {"outcome": "failed", "reason": "x" * 300} if number % 7 == 0 else {}
        store.save_measurement(
            GenerationRequest(width=64 * (1 + number % 40)),
            make_environment(card=f"Card {number % 30}"),
            make_measured(weights_bytes=2_000_000_000 + number, **changes),
            predictions=TOLD[: number % 3],
            holders=({"pid": number, "name": "python", "used_bytes": None},) * (number % 2),
        )
    return {run.measurement_id: run for run in store.measurements()}


@pytest.fixture(scope="module")
def kept(tmp_path_factory) -> tuple[bytes, dict[str, Measurement]]:
    """The bytes of a history, and its runs."""
    path = tmp_path_factory.mktemp("kept") / "planner.db"
    found = fill(path)
    return path.read_bytes(), found


def without_digests(content: bytes, path: Path) -> bytes:
    """The same history as versions before there were hashes kept it."""
    path.write_bytes(content)
    with closing(sqlite3.connect(path)) as db, db:
        db.execute("update measurements set digest = null")
    with closing(sqlite3.connect(path)) as db:
        db.execute("pragma wal_checkpoint(truncate)")
    return path.read_bytes()


@pytest.fixture
def damaged(tmp_path) -> Path:
    return tmp_path / "damaged.db"


def saved_of(path: Path, originals: dict[str, Measurement]) -> list[str]:
    """Ids of what can be read, each checked to be as it was; none where the file is refused."""
    try:
        salvaged = salvage(path)
    except InvalidArgument as error:
        assert str(error).startswith("file must be") and "\n" not in str(error)
        return []
    for run in salvaged.runs:
        assert run == originals[run.measurement_id]
    ids = [run.measurement_id for run in salvaged.runs]
    assert len(ids) == len(set(ids)) and len(ids) + salvaged.lost <= len(originals)
    return ids


def pages_of(content: bytes, path: Path) -> dict[str, set[int]]:
    """The leaf pages of each table, as SQLite finds them."""
    path.write_bytes(content)
    found: dict[str, set[int]] = {}
    with closing(sqlite3.connect(f"file:{path}?mode=ro&immutable=1", uri=True)) as db:
        try:
            for table in TABLES:
                query = "select pageno from dbstat where name = ? and pagetype = 'leaf'"
                found[table] = {number for (number,) in db.execute(query, [table])}
        except sqlite3.OperationalError:
            pytest.skip("this SQLite does not say where pages are")
    return found


def runs_on(content: bytes, number: int) -> set[bytes]:
    """Whatever looks like an id on this page."""
    return {content[at : at + 36] for at in range((number - 1) * PAGE, number * PAGE - 36)}


def test_all_of_a_history_in_order_is_read(kept, damaged):
    content, originals = kept
    damaged.write_bytes(content)
    salvaged = salvage(damaged)
    assert salvaged.lost == 0
    assert {run.measurement_id: run for run in salvaged.runs} == originals
    assert [run.created_at for run in salvaged.runs] == sorted(run.created_at for run in salvaged.runs)
    assert {run.origin for run in salvaged.runs} == {"own", "imported"}
    assert damaged.read_bytes() == content and len(list(damaged.parent.glob("damaged.db*"))) == 1


def test_one_page_costs_no_run_that_is_not_on_it(kept, damaged):
    """Damage of the upper pages, of page 1 or of an index costs nothing at all."""
    content, originals = kept
    leaves = pages_of(content, damaged)
    for number in range(1, len(content) // PAGE + 1):
        broken = bytearray(content)
        broken[(number - 1) * PAGE : number * PAGE] = random.Random(number).randbytes(PAGE)
        damaged.write_bytes(broken)
        ids = set(saved_of(damaged, originals))
        [table] = [table for table, numbers in leaves.items() if number in numbers] or [None]
        if table is None:
            assert ids == originals.keys(), number
        elif table in ("measurements", "stages", "predictions"):
            on_it = runs_on(content, number)
            assert ids == {one for one in originals if one.encode() not in on_it}, (number, table)


def test_a_file_cut_at_its_last_page_loses_only_what_was_there(kept, damaged):
    content, originals = kept
    for cut in (1, 100, PAGE - 1, PAGE):
        damaged.write_bytes(content[:-cut])
        on_it = runs_on(content, len(content) // PAGE)
        assert set(saved_of(damaged, originals)) >= {one for one in originals if one.encode() not in on_it}


@pytest.mark.parametrize("has_digests", [True, False])
@pytest.mark.parametrize("seed", range(60))
def test_random_damage_gives_what_was_kept_or_nothing(kept, damaged, seed, has_digests):
    content, originals = kept
    if not has_digests:
        content = without_digests(content, damaged)
    rng, broken = random.Random(seed), bytearray(content)
    if seed % 4 == 0:
        del broken[rng.randrange(len(broken)) :]
    count = len(content) // PAGE
    for _ in range(rng.randint(1, 4) if seed % 4 else 0):
        page, other = rng.randrange(count), rng.randrange(count)
        # Noise, nothing, or another page of the same file: as disks and file systems leave them.
        instead = [rng.randbytes(PAGE), bytes(PAGE), content[other * PAGE : (other + 1) * PAGE]][seed % 3]
        broken[page * PAGE : (page + 1) * PAGE] = instead
    damaged.write_bytes(broken)
    saved_of(damaged, originals)


@pytest.mark.parametrize("seed", range(40))
def test_bytes_changed_anywhere_never_change_a_run(kept, damaged, seed):
    content, originals = kept
    rng, broken = random.Random(seed), bytearray(content)
    for _ in range(rng.randint(1, 60)):
        at = rng.randrange(len(broken))
        broken[at : at + rng.randint(1, 8)] = rng.randbytes(4)[: rng.randint(1, 4)]
    damaged.write_bytes(broken)
    saved_of(damaged, originals)


@pytest.mark.parametrize("damage", [b"\xff" * PAGE, MAGIC + b"\x20\x00", MAGIC + b"\xff\xff", bytes(18)])
def test_a_damaged_beginning_costs_nothing(kept, damaged, damage):
    content, originals = kept
    damaged.write_bytes(damage + content[len(damage) :])
    assert set(saved_of(damaged, originals)) == originals.keys()


@pytest.mark.parametrize("value", [b"\x00", b"\x01", b"\x7f", b"\xff"])
def test_one_changed_number_is_seen(kept, damaged, value):
    content, originals = kept
    leaves = pages_of(content, damaged)
    for number in sorted(leaves["measurements"] | leaves["stages"])[:3]:
        for at in range((number - 1) * PAGE + 3000, number * PAGE, 97):
            broken = bytearray(content)
            broken[at : at + 1] = value
            damaged.write_bytes(broken)
            assert len(saved_of(damaged, originals)) >= len(originals) - 1


def test_runs_of_before_there_were_hashes_are_read_where_they_are_certainly_whole(kept, damaged):
    content, originals = kept
    content = without_digests(content, damaged)
    assert set(saved_of(damaged, originals)) == originals.keys()
    for number in sorted(pages_of(content, damaged)["stages"]):
        broken = bytearray(content)
        broken[(number - 1) * PAGE : number * PAGE] = bytes(PAGE)
        damaged.write_bytes(broken)
        ids, on_it = set(saved_of(damaged, originals)), runs_on(content, number)
        staged = [one for one, run in originals.items() if run.measured.stages]
        whole = {one for one in staged if one.encode() not in on_it}
        # The runs at both ends of the gap may have gone on in it.
        assert ids <= whole and len(ids) >= len(whole) - 2


def test_what_only_the_log_has_is_read_too(tmp_path, damaged):
    live = tmp_path / "live.db"
    originals = fill(live, 20)
    with closing(sqlite3.connect(live)) as held:
        # As long as somebody reads, nothing is taken from the log into the file.
        held.execute("begin").execute("select count(*) from measurements").fetchone()
        store = Store(live)
        for number in range(5):
            store.save_measurement(GenerationRequest(batch=1 + number), make_environment(), make_measured())
        originals = {run.measurement_id: run for run in store.measurements()}
        shutil.copy(live, damaged)
        shutil.copy(f"{live}-wal", f"{damaged}-wal")
    wal = Path(f"{damaged}-wal")
    assert set(saved_of(damaged, originals)) == originals.keys() and len(originals) == 25
    content = wal.read_bytes()
    for cut in range(1, len(content), 1009):
        wal.write_bytes(content[:cut])
        saved_of(damaged, originals)
    wal.write_bytes(b"no log at all")
    saved_of(damaged, originals)
    assert wal_pages(b"") == wal_pages(bytes(100)) == {}


def test_deleted_runs_stay_deleted(tmp_path):
    path = tmp_path / "other.db"
    originals = fill(path)
    store, gone = Store(path), list(originals)[10:45]
    for one in gone:
        store.delete_measurement(one)
    assert {run.measurement_id for run in salvage(path).runs} == originals.keys() - set(gone)
    assert salvage(path).lost == 0


def test_a_request_that_only_a_job_says_is_enough(tmp_path, environment):
    path = tmp_path / "other.db"
    store = Store(path)
    store.add_job("job", GenerationRequest(), environment, "owner")
    store.end_job("job", GenerationRequest(), environment, make_measured())
    content = bytearray(path.read_bytes())
    for number in pages_of(bytes(content), path)["requests"]:
        content[(number - 1) * PAGE : number * PAGE] = bytes(PAGE)
    path.write_bytes(content)
    assert len(salvage(path).runs) == 1


def test_each_older_schema_is_read(tmp_path, environment):
    names = [step.name for step in migrations._migrations]
    for stop_before in names[names.index("m004_jobs") :]:
        path = tmp_path / f"{stop_before}.db"
        db = Database(path)
        migrations.apply(db, stop_before=stop_before)
        there = db["measurements"].columns_dict
        run_id, request = RUN.measurement_id, GenerationRequest()
        # Of the fields that came later it says nothing.
        db["environments"].insert({"id": environment.environment_id} | environment.to_dict())
        db["requests"].insert({"id": request.request_id} | request.to_record())
        row = {"id": run_id, "request_id": request.request_id, "environment_id": environment.environment_id}
        row |= {"created_at": "2026-01-01T00:00:00.000000+00:00", "outcome": "ok", "holders": "[]"}
        row |= {"peak_allocated_bytes": 5, "seconds_per_step": 1}
        db["measurements"].insert({name: value for name, value in row.items() if name in there})
        db.close()
        [run] = salvage(path).runs
        assert (run.measurement_id, run.origin, run.environment) == (run_id, "own", environment)
        assert run == Store(path).measurement(run_id)


@settings(max_examples=40, deadline=None)
@given(st.lists(runs(), max_size=5, unique_by=lambda run: run.measurement_id))
def test_every_run_that_can_be_imported_is_recovered_as_it_is(tmp_path_factory, found):
    path = tmp_path_factory.mktemp("any") / "other.db"
    Store(path).import_measurements(found)
    kept = Store(path).measurements()
    assert sorted(salvage(path).runs, key=str) == sorted(kept, key=str)


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=9000), st.booleans())
def test_no_file_at_all_is_a_crash(tmp_path_factory, content, is_named):
    path = tmp_path_factory.getbasetemp() / "any.db"
    path.write_bytes(MAGIC + (512).to_bytes(2, "big") + content if is_named else content)
    with pytest.raises(InvalidArgument, match="file must be a damaged history of this planner"):
        salvage(path)
    list(Pages(content, {1: content[:512]} if is_named else {}, 512).rows())


# The command


def run_command(capsys, *argv: str) -> tuple[int, str, str]:
    code = main(argv)
    return code, *capsys.readouterr()


@pytest.fixture
def set_aside(own_history, kept) -> Path:
    """A history that was damaged in its upper pages, and set aside when it was next opened."""
    content = bytearray(kept[0])
    content[PAGE : 2 * PAGE] = b"\x55" * PAGE
    own_history.write_bytes(content)
    aside = Store(own_history).moved_aside
    assert aside is not None
    return aside


def test_a_history_that_was_set_aside_is_named_until_its_runs_are_saved(capsys, set_aside, own_history, kept):
    for command in (["history", "list"], ["doctor"]):
        code, out, err = run_command(capsys, *command)
        assert code == 0
        assert f"python -m planner history recover {set_aside}" in out + err
    code, out, err = run_command(capsys, "history", "recover", str(set_aside), "--json")
    done = json.loads(out)
    assert code == 0 and done["saved"] + done["lost"] <= len(kept[1]) and done["saved"] > 40
    assert err.startswith(f"saved {done['saved']} runs, 0 were known, {done['lost']} could not be read completely\n")
    assert done["file"] == f"{set_aside}.recovered" and Path(done["file"]).is_file() and not set_aside.exists()
    assert all(kept[1][run.measurement_id] == run for run in Store(own_history).measurements())
    for command in (["history", "list"], ["doctor"]):
        out, err = run_command(capsys, *command)[1:]
        assert "recover" not in out + err
    # Once more, by the name it has now.
    code, out, err = run_command(capsys, "history", "recover", done["file"])
    assert (code, out) == (0, "") and err.startswith(f"saved 0 runs, {done['saved']} were known")
    assert Path(done["file"]).is_file()


def test_a_damaged_history_is_said_with_what_to_do_the_first_time(capsys, own_history):
    own_history.write_bytes(b"not a database at all " * 100)
    err = run_command(capsys, "history", "list")[2]
    assert err.count("python -m planner history recover") == 1


def test_a_file_that_nobody_wants_is_discarded_and_not_deleted(capsys, set_aside, own_history):
    content = set_aside.read_bytes()
    Path(f"{set_aside}-wal").write_bytes(b"log")
    code, out, err = run_command(capsys, "history", "recover", str(set_aside), "--discard")
    assert (code, out, err) == (0, "", f"nothing was saved; the file is kept as {set_aside}.discarded\n")
    assert Path(f"{set_aside}.discarded").read_bytes() == content
    assert Path(f"{set_aside}.discarded-wal").read_bytes() == b"log"
    assert Store(own_history).damaged_files() == [] and not Store(own_history).measurements()
    code, out, err = run_command(capsys, "history", "recover", str(set_aside), "--discard")
    assert code == 2 and "must be a damaged history that was set aside" in err and "(there is none)" in err


def test_a_file_moved_away_is_no_longer_named(capsys, set_aside, tmp_path):
    moved = tmp_path / "elsewhere.db"
    set_aside.rename(moved)
    assert "recover" not in run_command(capsys, "history", "list")[2]
    code, _, err = run_command(capsys, "history", "recover", str(moved))
    # A file of the user's keeps its name.
    assert code == 0 and "the file is kept" not in err and moved.is_file()


def test_runs_that_are_there_are_not_added_twice_and_stay_as_they_are(capsys, set_aside, own_history, kept):
    mine = [replace(run, origin="imported") for run in kept[1].values()][:3]
    Store(own_history).import_measurements(mine)
    code, _, err = run_command(capsys, "history", "recover", str(set_aside))
    assert code == 0 and ", 3 were known," in err
    found = {run.measurement_id: run for run in Store(own_history).measurements()}
    assert [found[run.measurement_id] for run in mine] == mine


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda path: None, "must be a file that can be read, got {0} (No such file or directory)"),
        (lambda path: path.mkdir(), "must be a file that can be read, got {0} (it is a folder)"),
        (lambda path: path.touch(), "must be a damaged history of this planner, got {0} (it is no SQLite file)"),
        (lambda path: path.write_text("text"), "history of this planner, got {0} (it is no SQLite file)"),
        (lambda path: path.write_bytes(MAGIC), "got {0} (it is a database, and no run can be read in it)"),
    ],
    ids=["nothing", "folder", "empty", "text", "beginning"],
)
def test_what_is_no_damaged_history_is_a_message_and_leaves_no_trace(
    capsys, tmp_path, monkeypatch, own_history, make, message
):
    monkeypatch.chdir(tmp_path)
    make(Path("other.db"))
    code, out, err = run_command(capsys, "history", "recover", "other.db")
    assert (code, out) == (2, "") and message.format("'other.db'") in err
    assert err.startswith("error: file must be ") and err.count("\n") == 1
    assert not own_history.exists()


def test_a_database_of_another_program_is_refused(capsys, tmp_path, own_history):
    path = tmp_path / "other.db"
    with closing(sqlite3.connect(path)) as db, db:
        db.execute("create table measurements (id text, value integer)")
        db.execute("create table six (a text, b text, c integer, d integer, e integer, f real)")
        db.executemany("insert into measurements values (?, ?)", [("a", 1), ("b", 2)])
        db.execute("insert into six values ('a', 'unet', 1, 2, 3, 4.0)")
    code, _, err = run_command(capsys, "history", "recover", str(path))
    assert code == 2 and "it is a database, and no run can be read in it" in err
    assert not own_history.exists()


def test_the_history_in_use_is_refused_by_whatever_name(capsys, own_history, tmp_path):
    fill(own_history, 2)
    (tmp_path / "link.db").symlink_to(own_history)
    (tmp_path / "twin.db").hardlink_to(own_history)
    names = [own_history, f"{own_history}-wal", tmp_path / "link.db", tmp_path / "twin.db"]
    for name in map(str, names):
        code, _, err = run_command(capsys, "history", "recover", name)
        assert code == 2 and "file must not be the history in use, whose runs are all there" in err
    assert len(Store(own_history).measurements()) == 2


def test_a_history_that_takes_no_more_leaves_the_file_where_it_is(capsys, set_aside, own_history, monkeypatch):
    monkeypatch.setattr("cache.history.file.BUSY_TIMEOUT_S", 0.1)
    with closing(sqlite3.connect(own_history, isolation_level=None)) as other:
        other.execute("begin immediate")
        code, out, err = run_command(capsys, "history", "recover", str(set_aside))
        other.execute("rollback")
    assert (code, out) == (2, "") and "database is locked" in err
    assert set_aside.is_file() and Store(own_history).damaged_files() == [set_aside]


def test_a_file_that_cannot_be_renamed_is_said_and_its_runs_are_saved(capsys, set_aside, own_history, monkeypatch):
    def refuse(*_):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "rename", refuse)
    code, _, err = run_command(capsys, "history", "recover", str(set_aside))
    assert code == 0 and "is still mentioned, since it cannot be renamed (Permission denied)" in err
    assert len(Store(own_history).measurements()) > 40
    code, _, err = run_command(capsys, "history", "recover", str(set_aside), "--discard")
    assert code == 2 and "cannot be written (Permission denied)" in err


def test_an_export_never_overwrites_what_was_set_aside(capsys, set_aside):
    before = set_aside.read_bytes()
    code, _, err = run_command(capsys, "history", "export", str(set_aside))
    assert code == 2 and "file must not be a damaged history, since its runs can still be saved" in err
    assert set_aside.read_bytes() == before
