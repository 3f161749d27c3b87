import io
import json
import os
import re
import subprocess
import sys
from dataclasses import replace

import pytest

from cache.exchange.lines import line_of
from cache.files import write_file
from cache.history.store import Store
from cache.records import Measured
from planner.cli import exchange as cli_exchange
from planner.cli.main import main
from planner.request import GenerationRequest
from tests.conftest import ROOT, make_environment, make_measured
from tests.unit.exchange.test_lines import RUN


def run(capsys, *argv: str) -> tuple[int, str, str]:
    code = main(argv)
    out, err = capsys.readouterr()
    return code, out, err


@pytest.fixture
def two_runs(own_history) -> list[str]:
    """Make a history and return the ids of an own and an imported run, oldest first."""
    store = Store(own_history)
    store.import_measurements([replace(RUN, created_at="2025-01-01T00:00:00.000000+00:00", source="a T4 elsewhere")])
    return [RUN.measurement_id, store.save_measurement(GenerationRequest(), make_environment(), make_measured())]


def test_an_export_can_be_imported_and_comes_back_known(capsys, two_runs, tmp_path, monkeypatch):
    path = tmp_path / "runs.jsonl"
    code, out, err = run(capsys, "history", "export", str(path))
    assert (code, out, err) == (0, "", f"exported 2 runs to {path}\n")
    assert [json.loads(line)["id"] for line in path.read_text().splitlines()] == two_runs
    assert run(capsys, "history", "import", str(path))[2] == "imported 0 runs, 2 were known\n"
    monkeypatch.setenv("PLANNER_DB", str(tmp_path / "other.db"))
    assert run(capsys, "history", "import", str(path))[2] == "imported 2 runs, 0 were known\n"
    code, out, err = run(capsys, "history", "import", str(path), "--json")
    assert (code, json.loads(out)) == (0, {"schema": 1, "imported": 0, "known": 2})
    code, out, _ = run(capsys, "history", "export", str(path), "--json", "--force")
    assert (code, json.loads(out)) == (0, {"schema": 1, "exported": 2})
    assert os.listdir(tmp_path).count("runs.jsonl") == 1
    assert not [name for name in os.listdir(tmp_path) if name.endswith(".part")]


def test_a_dash_is_stdout_and_stdin(capsysbinary, two_runs, monkeypatch):
    assert main(["history", "export", "-"]) == 0
    out, err = capsysbinary.readouterr()
    assert (out.count(b"\n"), err) == (2, b"exported 2 runs to stdout\n")
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(out)))
    assert main(["history", "import", "-"]) == 0
    assert capsysbinary.readouterr().err == b"imported 0 runs, 2 were known\n"


def test_stdout_gets_utf_8_in_any_locale(tmp_path):
    run = replace(RUN, source="größer")
    path = tmp_path / "other.db"
    Store(path).import_measurements([run])
    environment = {"PYTHONIOENCODING": "ascii", "PATH": "", "PLANNER_DB": str(path)}
    command = [sys.executable, "-m", "planner", "history", "export", "-"]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, check=False)
    assert done.stdout.decode() == f"{line_of(run)}\n"


def test_an_empty_history_is_an_empty_file(capsys, tmp_path):
    path = tmp_path / "runs.jsonl"
    assert run(capsys, "history", "export", str(path))[2] == f"exported 0 runs to {path}\n"
    assert path.read_bytes() == b""
    assert run(capsys, "history", "import", str(path))[2] == "imported 0 runs, 0 were known\n"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"{}\n", "error: line 1: format must be given, got nothing\n"),
        (b"\x00" * 100_000, "error: line 1 must be at most 65536 bytes, got more\n"),
        (line_of(RUN).encode() + b"\n[\n", "error: line 2 must be JSON (Expecting value, column 2), got '['\n"),
        (b"SQLite format 3\x00\xff", "error: line 1 must be UTF-8, got b'\\xff'\n"),
    ],
    ids=lambda value: str(value)[:20],
)
def test_a_bad_file_is_one_line_and_makes_no_history(capsys, tmp_path, own_history, content, message):
    path = tmp_path / "runs.jsonl"
    path.write_bytes(content)
    assert run(capsys, "history", "import", str(path)) == (2, "", message)
    assert not own_history.exists()


def test_another_run_with_a_known_id_imports_nothing(capsys, two_runs, tmp_path, own_history):
    path = tmp_path / "runs.jsonl"
    path.write_text(line_of(replace(RUN, source="someone else")))
    code, _, err = run(capsys, "history", "import", str(path))
    assert code == 2 and err.startswith("error: id must be the id of one run, another with it is in the history")
    assert len(Store(own_history).measurements()) == 2


@pytest.mark.parametrize("name", ["", "nowhere/runs.jsonl", "."])
def test_a_file_that_cannot_be_used_is_a_message(capsys, tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    code, out, err = run(capsys, "history", "import", name)
    assert (code, out) == (2, "") and err.startswith(f"error: file must be a file that can be read, or -, got {name!r}")
    code, out, err = run(capsys, "history", "export", name)
    assert (code, out) == (2, "") and err.startswith("error: file must be a file that can be written, or -, got")
    assert err.count("\n") == 1


def test_the_history_itself_and_devices_are_never_overwritten(capsys, two_runs, own_history):
    for suffix in ("", "-wal", "-shm", "-journal", ".lock"):
        path = own_history.with_name(f"planner.db{suffix}")
        code, _, err = run(capsys, "history", "export", str(path))
        assert code == 2 and "file must not be the history itself" in err
    assert len(Store(own_history).measurements()) == 2
    code, _, err = run(capsys, "history", "export", "/dev/null")
    assert code == 2 and "it is no regular file" in err


def test_a_name_that_starts_like_the_historys_is_allowed(capsys, two_runs, own_history):
    for suffix in (".jsonl", "-wal.jsonl", "2", ".damaged-runs"):
        path = own_history.with_name(f"planner.db{suffix}")
        assert run(capsys, "history", "export", str(path))[0] == 0
        assert path.read_text().count("\n") == 2


def test_a_link_to_the_history_is_the_history(capsys, two_runs, own_history, tmp_path):
    link = tmp_path / "link"
    link.symlink_to(own_history)
    code, _, err = run(capsys, "history", "export", str(link))
    assert code == 2 and "file must not be the history itself" in err


WRITERS = ("export", "backup")


@pytest.mark.parametrize("command", WRITERS)
@pytest.mark.parametrize("force", [(), ("--force",)])
def test_a_link_is_never_followed(capsys, two_runs, tmp_path, command, force):
    link, target = tmp_path / "link", tmp_path / "target"
    link.symlink_to(target)
    for content in (None, "old"):
        if content:
            target.write_text(content)
        code, _, err = run(capsys, "history", command, str(link), *force)
        assert code == 2 and f"file must not be a link, got '{link}'"[:60] in err and f"name the file: {target}" in err
        assert link.is_symlink() and (target.read_text() if content else not target.exists())


@pytest.mark.parametrize("command", WRITERS)
def test_a_file_is_replaced_only_if_asked_and_keeps_its_mode(capsys, two_runs, tmp_path, command):
    path = tmp_path / "file"
    path.write_text("old")
    path.chmod(0o600)
    code, _, err = run(capsys, "history", command, str(path))
    assert code == 2 and "file must not be there yet" in err and "--force replaces this one" in err
    assert path.read_text() == "old"
    assert run(capsys, "history", command, str(path), "--force")[0] == 0
    assert path.read_bytes() != b"old" and path.stat().st_mode & 0o777 == 0o600
    assert not list(tmp_path.glob(".*.part"))


@pytest.mark.parametrize("command", WRITERS)
@pytest.mark.parametrize("place", ["/etc/runs.jsonl", "/proc/self/runs.jsonl", "/dev/runs.jsonl", "/usr/runs.jsonl"])
def test_nothing_is_written_into_places_of_the_system(capsys, two_runs, command, place):
    code, _, err = run(capsys, "history", command, place, "--force")
    assert code == 2 and "is a folder of the system" in err
    assert not os.path.lexists(place)


@pytest.mark.parametrize("command", WRITERS)
def test_a_pipe_is_no_file_to_write(capsys, two_runs, tmp_path, command):
    os.mkfifo(tmp_path / "pipe")
    code, _, err = run(capsys, "history", command, str(tmp_path / "pipe"), "--force")
    assert code == 2 and "it is no regular file" in err


def test_a_file_that_came_meanwhile_stays(tmp_path):
    path = tmp_path / "file"
    with pytest.raises(FileExistsError):
        write_file(path, lambda part: path.write_text("theirs"))
    assert path.read_text() == "theirs" and os.listdir(tmp_path) == ["file"]


def test_a_backup_opens_as_a_history(capsys, two_runs, tmp_path, monkeypatch, own_history):
    path = tmp_path / "copy.db"
    own_history.chmod(0o600)
    code, out, err = run(capsys, "history", "backup", str(path), "--json")
    assert (code, json.loads(out)) == (0, {"schema": 1, "copied": 2, "file": str(path)})
    assert err == f"copied the history of 2 runs to {path}\n" and path.stat().st_mode & 0o777 == 0o600
    monkeypatch.setenv("PLANNER_DB", str(path))
    listed = json.loads(run(capsys, "history", "list", "--json")[1])["measurements"]
    assert sorted(one["id"] for one in listed) == sorted(two_runs)
    code, _, err = run(capsys, "history", "backup", "-")
    assert code == 2 and "a database cannot be written to stdout" in err


def test_an_export_that_fails_half_way_leaves_the_old_file(capsys, two_runs, tmp_path, monkeypatch):
    path = tmp_path / "runs.jsonl"
    path.write_text("old")

    def half(file, runs) -> None:
        file.write(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(cli_exchange, "_write", half)
    code, _, err = run(capsys, "history", "export", str(path), "--force")
    assert code == 2 and "(No space left on device)" in err
    assert path.read_text() == "old"
    assert not list(tmp_path.glob(".*.part"))


def test_json_and_runs_do_not_mix_on_stdout(capsys):
    code, out, err = run(capsys, "history", "export", "-", "--json")
    assert (code, out) == (2, "") and "json must not be given where the runs go to stdout" in err


def test_the_list_has_origins_if_some_runs_are_imported(capsys, own_history):
    store = Store(own_history)
    store.save_measurement(GenerationRequest(), make_environment(), make_measured())
    assert "origin" not in run(capsys, "history", "list")[1]
    store.import_measurements([RUN])
    out = run(capsys, "history", "list")[1]
    assert out.splitlines()[0].split()[:3] == ["id", "UTC", "origin"]
    assert sorted(line.split()[3] for line in out.splitlines()[2:]) == ["imported", "own"]
    shown = run(capsys, "history", "show", RUN.measurement_id)[1]
    assert "from     imported, its file does not name a source" in shown


def test_the_list_has_options_if_some_runs_have_any(capsys, own_history):
    store, predictions = Store(own_history), RUN.predictions
    store.save_measurement(GenerationRequest(), make_environment(), make_measured(), predictions=predictions)
    plain = run(capsys, "history", "list")[1]
    assert "options" not in plain and "% formula" in plain
    request = GenerationRequest(guidance_scale=1, channels_last=True)
    failed = Measured(outcome="failed", reason="it fell over")
    store.save_measurement(request, make_environment(), failed, predictions=predictions)
    header, _, newest, _ = run(capsys, "history", "list")[1].splitlines()
    assert re.split("  +", header)[2:5] == ["request", "options", "on"]
    cells = re.split("  +", newest)
    assert cells[2:9] == ["img2img 512x512 x1", "unguided, channels last", "Tesla T4", "failed", "-", "-", "-"]


def test_reference_runs_are_listed_and_shown(capsys, own_history):
    out = run(capsys, "history", "list", "--reference")[1]
    assert out.count("reference") == 37 and "vae.decode 2048x2048 x1" in out and "Tesla P100" in out
    listed = json.loads(run(capsys, "history", "list", "--reference", "--json")[1])["measurements"]
    assert {one["origin"] for one in listed} == {"reference"}
    tiled = next(one for one in listed if one["scope"] == "vae.decode" and one["request"]["vae_tiling"])
    code, out, _ = run(capsys, "history", "show", tiled["id"][:8])
    assert code == 0 and "VAE decoder alone, 1024×1024, in tiles; its weights are not in the peaks" in out
    assert "peak     0.60 GiB allocated, 1.01 GiB reserved" in out and "m235, m236" in out
    shown = json.loads(run(capsys, "history", "show", tiled["id"], "--json")[1])["measurement"]
    assert shown == tiled
    # They are no part of the history.
    assert run(capsys, "history", "delete", tiled["id"], "--yes")[0] == 2
    assert json.loads(run(capsys, "history", "list", "--json")[1])["measurements"] == []


def test_own_runs_come_before_reference_runs(capsys, own_history):
    reference = json.loads(run(capsys, "history", "list", "--reference", "--json")[1])["measurements"][0]["id"]
    twins = [f"{reference[:8]}-0000-0000-0000-00000000000{number}" for number in range(2)]
    store = Store(own_history)
    store.import_measurements([replace(RUN, measurement_id=twins[0])])
    assert twins[0] in run(capsys, "history", "show", reference[:8])[1]
    assert reference in run(capsys, "history", "show", reference)[1]
    store.import_measurements([replace(RUN, measurement_id=twins[1])])
    code, _, err = run(capsys, "history", "show", reference[:8])
    assert code == 2 and "must name one run, this begins 2" in err
