"""What is written where nothing more can be: one line that says why and what to do, and nothing lost or half done."""

import contextlib
import json
import os
import sqlite3
import sys
from dataclasses import replace
from pathlib import Path
from uuid import UUID

import pytest

from cache.exchange.lines import line_of
from cache.history.file import HistoryFile
from cache.history.location import HistoryRefused
from cache.history.store import Store
from cache.jobs.owner import Owner
from planner.cli.main import main
from planner.programs.files import shipped
from planner.request import GenerationRequest
from tests.conftest import make_environment, make_measured
from tests.full_disk import PLANNER, as_anybody, can_mount, on_full_disk, with_file_limit
from tests.unit.exchange.test_lines import RUN

REQUEST = GenerationRequest(width=64, height=64)
needs_mount = pytest.mark.skipif(not can_mount(), reason="no file system of one's own here")

# The command with a worker that follows a script instead of loading a model.
SCRIPTED = """
import sys
from cache.jobs.queue import Jobs
from planner.cli.main import main
from planner.programs.files import shipped
command = [sys.executable, "-m", "tests.worker.scripted", "good"]
Jobs.__init__.__kwdefaults__["worker_command"] = lambda kind: command
sys.exit(main(sys.argv[1:]))
"""


@pytest.fixture
def folder(tmp_path, monkeypatch) -> Path:
    """A folder with a history of two runs, a file of many more, and an earlier export."""
    path = tmp_path / "disk"
    path.mkdir()
    monkeypatch.setenv("PLANNER_DB", str(path / "planner.db"))
    store = Store(path / "planner.db")
    for _ in range(2):
        store.save_measurement(REQUEST, make_environment(), make_measured())
    many = (replace(RUN, measurement_id=str(UUID(int=number, version=4))) for number in range(400))
    (tmp_path / "many.jsonl").write_text("".join(f"{line_of(run)}\n" for run in many))
    (path / "runs.jsonl").write_text("earlier")
    return path


def ids_in(folder: Path) -> list[str]:
    return [run.measurement_id for run in Store(folder / "planner.db").measurements()]


def names_in(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()} - {"planner.db-wal", "planner.db-shm", "planner.db.lock"}


def held(done, folder: Path, before: list[str], *words: str) -> None:
    """One line, exit 2, and all as it was."""
    assert done.returncode == 2, done
    assert done.stderr.startswith("error: ") and done.stderr.count("\n") == 1, done.stderr
    for word in words:
        assert word in done.stderr
    assert ids_in(folder) == before
    assert names_in(folder) == {"planner.db", "runs.jsonl"}
    assert (folder / "runs.jsonl").read_text() == "earlier"


COMMANDS = {
    "import": ["history", "import", "many.jsonl"],
    "delete": ["history", "delete", "ID", "--yes"],
    "export": ["history", "export", "disk/runs.jsonl", "--force"],
}


def command_of(name: str, folder: Path) -> list[str]:
    named = {"ID": ids_in(folder)[0], "many.jsonl": str(folder.parent / "many.jsonl")}
    named["disk/runs.jsonl"] = str(folder / "runs.jsonl")
    return [*PLANNER, *(named.get(word, word) for word in COMMANDS[name])]


@needs_mount
@pytest.mark.parametrize("room_kib", [0, 36, 64, 200])
def test_an_import_on_a_full_disk_is_one_line_and_keeps_nothing(folder, room_kib):
    before = ids_in(folder)
    done = on_full_disk(folder, command_of("import", folder), room_kib=room_kib)
    held(done, folder, before, f"the history {folder}/planner.db cannot be", "set PLANNER_DB to a file on another one")


@needs_mount
@pytest.mark.parametrize("name", ["delete", "export"])
def test_a_full_disk_is_one_line_and_all_is_as_it_was(folder, name):
    store = Store(folder / "planner.db")
    store.import_measurements([replace(RUN, measurement_id=str(UUID(int=n, version=4))) for n in range(60)])
    before = ids_in(folder)
    # Enough to open the history, and for no more.
    room = {"delete": 33, "export": 56}[name]
    done = on_full_disk(folder, command_of(name, folder), room_kib=room)
    held(done, folder, before, "full" if name == "delete" else "(No space left on device)")


@needs_mount
def test_a_run_measured_on_a_full_disk_is_a_line_to_import(folder, tmp_path):
    before = ids_in(folder)
    argv = ["verify", "--device", "cpu", "--width", "64", "--height", "64"]
    # Room for the job, and none for its run once something else has filled the disk.
    fill = SCRIPTED.replace(
        "sys.exit(",
        "from cache.history.store import Store\nend_job = Store.end_job\n"
        "def full(self, *args, **kwargs):\n"
        f"    with open({str(folder / 'other')!r}, 'wb', buffering=0) as other:\n"
        "        try:\n"
        "            while True:\n"
        "                other.write(bytes(4096))\n"
        "        except OSError:\n"
        "            pass\n"
        "    return end_job(self, *args, **kwargs)\n"
        "Store.end_job = full\nsys.exit(",
    )
    done = on_full_disk(folder, [sys.executable, "-c", fill, *argv], room_kib=400)
    assert done.returncode == 2 and "Traceback" not in done.stderr, done.stderr
    assert "not kept:\nrun " in done.stderr and "the line on stdout is the run" in done.stderr
    assert f"the history {folder}/planner.db cannot be written (" in done.stderr
    assert json.loads(done.stdout)["measured"]["peak_allocated_bytes"] == 1000
    assert ids_in(folder) == before


@needs_mount
def test_output_to_a_full_disk_is_one_line(folder):
    command = f"{' '.join(PLANNER)} gpus --json > {folder}/cards.json"
    done = on_full_disk(folder, ["sh", "-c", command], room_kib=4)
    assert done.returncode == 2
    assert (
        done.stderr
        == "error: stdout cannot be written (No space left on device) - free space there, or send it elsewhere\n"
    )


@pytest.mark.parametrize("name", COMMANDS)
def test_a_limit_on_what_may_be_written_is_one_line(folder, name):
    before = ids_in(folder)
    done = with_file_limit(command_of(name, folder), 1024)
    held(done, folder, before, "planner.db cannot be")


@pytest.mark.parametrize("limit_kib", [64, 128, 256, 400])
def test_an_import_that_grows_beyond_a_limit_keeps_nothing(folder, limit_kib):
    before = ids_in(folder)
    done = with_file_limit(command_of("import", folder), limit_kib * 1024)
    held(done, folder, before, "planner.db cannot be written", "set PLANNER_DB to a file on another one")


def test_an_export_that_grows_beyond_a_limit_leaves_the_earlier_file(folder):
    Store(folder / "planner.db").import_measurements(
        [replace(RUN, measurement_id=str(UUID(int=number, version=4))) for number in range(400)]
    )
    before = ids_in(folder)
    done = with_file_limit(command_of("export", folder), 64 * 1024)
    held(done, folder, before, "file must be a file that can be written, or -", "(File too large)")


@pytest.mark.parametrize("name", COMMANDS)
def test_a_folder_that_may_not_be_written_is_one_line(folder, name):
    before, command = ids_in(folder), command_of(name, folder)
    folder.chmod(0o555)
    done = as_anybody(command)
    folder.chmod(0o755)
    held(done, folder, before, "planner.db cannot be", "make it and its folder writable")


@pytest.mark.parametrize("name", ["import", "delete"])
def test_a_history_that_may_not_be_written_is_one_line(folder, name):
    before, command = ids_in(folder), command_of(name, folder)
    (folder / "planner.db").chmod(0o444)
    done = as_anybody(command)
    (folder / "planner.db").chmod(0o644)
    held(done, folder, before, "planner.db cannot be", "make it and its folder writable, or set PLANNER_DB")


@pytest.mark.parametrize("name", ["import", "delete"])
def test_a_history_that_another_program_holds_is_one_line(folder, capsys, monkeypatch, name):
    monkeypatch.setattr("cache.history.file.BUSY_TIMEOUT_S", 0.1)
    before, argv = ids_in(folder), command_of(name, folder)[3:]
    other = sqlite3.connect(folder / "planner.db", isolation_level=None)
    other.execute("begin immediate")
    code, (out, err) = main(argv), capsys.readouterr()
    other.execute("rollback")
    other.close()
    assert (code, out) == (2, "")
    assert err.startswith(f"error: the history {folder}/planner.db cannot be")
    assert err.endswith("(database is locked) - another program holds it: try again once that has ended\n")
    assert ids_in(folder) == before


class Limited(Store):
    """A history whose file may not grow, as SQLite itself sees a full disk."""

    is_full = False

    @contextlib.contextmanager
    def _connection(self, **options):
        with super()._connection(**options) as db:
            if self.is_full:
                # Never below the pages that there are.
                db.execute("pragma max_page_count = 1")
            yield db


@pytest.fixture
def full(own_history) -> Store:
    store = Limited(own_history)
    store.save_measurement(REQUEST, make_environment(), make_measured())
    store.is_full = True
    return store


def many_runs() -> list:
    return [replace(RUN, measurement_id=str(UUID(int=number, version=4))) for number in range(200)]


def test_each_write_to_a_full_history_is_refused_by_name_and_leaves_nothing(full, own_history):
    environment = make_environment(card="x" * 3000)
    long = make_measured(outcome="failed", reason="x" * 9000)
    versions = {"diffusers": "1", "transformers": "1"}
    for write in (
        lambda: full.import_measurements(many_runs()),
        lambda: full.save_measurement(REQUEST, environment, long),
        lambda: full.save_model_facts("m" * 9000, versions, {"unet": (1, 2)}),
        lambda: full.add_job("job" * 3000, REQUEST, environment, "owner"),
        lambda: full.save_program(shipped()),
    ):
        with pytest.raises(HistoryRefused) as caught:
            write()
        assert str(caught.value) == (
            f"the history {own_history} cannot be written (database or disk is full) - "
            "free space on its disk, or set PLANNER_DB to a file on another one"
        )
    assert len(full.measurements()) == 1 and full.open_jobs() == []


def test_a_claim_that_cannot_be_made_is_a_message(own_history, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "open", full)
    with pytest.raises(HistoryRefused, match=r"cannot be written \(No space left on device\) - free space on its disk"):
        Owner.claim(own_history)


def test_an_export_into_a_folder_that_may_not_be_written_is_one_line(folder, tmp_path):
    before = ids_in(folder)
    command = [*PLANNER, "history", "export", str(tmp_path / "closed" / "runs.jsonl")]
    (tmp_path / "closed").mkdir(mode=0o555)
    held(as_anybody(command), folder, before, "file must be a file that can be written, or -", "(Permission denied)")


def test_a_bug_of_ours_keeps_its_traceback(own_history):
    store = HistoryFile(own_history)
    with pytest.raises(sqlite3.OperationalError, match="no such table"), store._connect() as db:
        db.execute("select * from nowhere")
