"""Memory programs for other versions than the shipped ones: noticed, compiled, kept and found again."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from cache import programs
from cache.history.location import HistoryRefused
from cache.history.store import Store
from cache.programs import CompileFailed, compile_installed, find
from planner.cli.main import main
from planner.components import LIBRARIES
from planner.errors import NoProgram
from planner.programs.assemble import events_of
from planner.programs.files import SHIPPED, decode, encode, read, save, shipped
from planner.programs.library import Library
from planner.request import GenerationRequest


@pytest.fixture
def other_versions(monkeypatch):
    """Pretend that a newer diffusers is installed than the programs are for."""
    versions = dict(programs.installed()) | {"diffusers": "0.43.0"}
    monkeypatch.setattr("cache.programs.installed", lambda: versions)
    return {name: versions[name].partition("+")[0] for name in LIBRARIES}


@pytest.fixture
def fast_compile(monkeypatch, other_versions):
    """Replace the compile by a child that writes the shipped programs under the installed versions."""
    library = shipped()
    renamed = Library(other_versions, library.routines, library.modules, library.weights)

    def compiled(path, report):
        report(0.5, "half of it")
        save(renamed, path)
        return read(path)

    monkeypatch.setattr("cache.programs._compiled", compiled)


def test_the_installed_versions_have_their_programs():
    library, notice = find()
    assert library is shipped() and notice is None


def test_other_versions_are_noticed_and_shipped_programs_answer(other_versions):
    library, notice = find()
    assert library is shipped()
    assert "not for the installed diffusers 0.43.0 (but for 0.42.1)" in notice
    assert "python -m planner compile" in notice


def test_compiled_programs_are_kept_and_found_again(fast_compile, other_versions, own_history):
    said = []
    compile_installed(lambda done, what: said.append((done, what)))
    assert said == [(0.5, "half of it")]
    library, notice = find()
    assert notice is None
    assert dict(library.versions) == other_versions
    assert Store(own_history).program(dict(shipped().versions)) is None
    request = GenerationRequest()
    ours, theirs = events_of(library, request), events_of(shipped(), request)
    assert (ours.values == theirs.values).all()


def test_fit_says_that_programs_are_being_made_and_answers(capsys, monkeypatch, other_versions):
    started = []
    monkeypatch.setattr("cache.programs.repair_in_background", lambda: started.append(True) or True)
    assert main(["fit", "--gpu", "T4"]) == 0
    out, err = capsys.readouterr()
    assert started == [True]
    assert "dry-run" in out and "not for the installed diffusers 0.43.0" in err and "in the background" in err


def test_compile_does_nothing_when_there_is_nothing_to_do(capsys):
    assert main(["compile"]) == 0
    assert "are there" in capsys.readouterr().err


def test_compile_makes_missing_programs(capsys, fast_compile):
    assert main(["compile"]) == 0
    err = capsys.readouterr().err
    assert "[ 50%] half of it" in err and "has memory programs for the installed versions" in err
    assert main(["compile"]) == 0
    assert "are there (a program compiled here)" in capsys.readouterr().err


def test_only_one_compile_runs_at_a_time(fast_compile):
    with programs._alone() as alone:
        assert alone
        with pytest.raises(CompileFailed, match="another compile is under way"):
            compile_installed(lambda *_: None)


def test_a_compile_that_fails_is_one_line(monkeypatch, capsys, other_versions):
    real = subprocess.Popen
    command = [sys.executable, "-c", "import sys; sys.exit('no module named torch')"]
    monkeypatch.setattr(subprocess, "Popen", lambda _, **options: real(command, **options))
    assert main(["compile"]) == 2
    err = capsys.readouterr().err
    assert "error: the installed versions could not be compiled (no module named torch)" in err
    assert "Traceback" not in err


def child(monkeypatch, code: str) -> list[list[str]]:
    """Replace compiles, and list the commands that were started."""
    real, started = subprocess.Popen, []

    def popen(command, **options):
        started.append(command)
        return real([sys.executable, "-c", code], **options)

    monkeypatch.setattr(subprocess, "Popen", popen)
    return started


def test_a_failed_compile_is_not_repeated_by_every_call(monkeypatch, capsys, other_versions):
    started = child(monkeypatch, "import sys; sys.exit('boom')")
    assert programs.repair_in_background()
    programs._started.pop().wait()
    with pytest.raises(CompileFailed, match="boom"):
        compile_installed(lambda *_: None)
    assert "making new ones failed (boom), 'python -m planner compile' tries again" in find().notice
    before = len(started)
    assert main(["fit", "--gpu", "T4"]) == 0
    assert len(started) == before
    err = capsys.readouterr().err
    assert "failed (boom)" in err and "in the background" not in err


def test_a_failure_counts_for_its_versions_alone(monkeypatch, other_versions):
    child(monkeypatch, "import sys; sys.exit('boom')")
    with pytest.raises(CompileFailed):
        compile_installed(lambda *_: None)
    assert programs.last_failure() == "boom"
    monkeypatch.setattr("cache.programs.installed", lambda: other_versions | {"diffusers": "0.44.0"})
    assert programs.last_failure() is None


def test_many_warnings_do_not_block_the_compile(monkeypatch, other_versions):
    child(monkeypatch, "import sys; sys.stderr.write('UserWarning: no\\n' * 100_000); sys.exit('too much')")
    with pytest.raises(CompileFailed, match="too much"):
        compile_installed(lambda *_: None)


@pytest.mark.parametrize("database", ["/proc/nope/planner.db", "/dev/null/planner.db"])
def test_without_a_place_to_write_the_shipped_programs_answer(monkeypatch, capsys, other_versions, database):
    monkeypatch.setenv("PLANNER_DB", database)
    assert main(["fit", "--gpu", "T4"]) == 0
    out, err = capsys.readouterr()
    assert "dry-run" in out and "Traceback" not in err
    assert main(["compile"]) == 2
    assert "error: memory programs cannot be kept" in capsys.readouterr().err


def test_whether_a_compile_is_under_way_can_be_seen(own_history):
    assert not programs.is_compiling()
    with programs._alone():
        assert programs.is_compiling()
        assert programs.repair_in_background()
    assert not programs.is_compiling()


@pytest.mark.parametrize(
    ("suffix", "damage"),
    [
        (".bin", lambda content: content[: len(content) // 2]),
        (".bin", lambda content: b""),
        (".bin", lambda content: content[4:] + content[:4]),
        (".json", lambda content: content[: len(content) // 2]),
        (".json", lambda content: b"[]"),
    ],
)
def test_damaged_programs_are_reported_and_the_formula_answers(monkeypatch, tmp_path, capsys, suffix, damage):
    save(shipped(), tmp_path / "sd15")
    path = (tmp_path / "sd15").with_suffix(suffix)
    path.write_bytes(damage(path.read_bytes()))
    monkeypatch.setattr("planner.programs.files.SHIPPED", tmp_path / "sd15")
    monkeypatch.setattr("cache.programs.repair_in_background", lambda: False)
    shipped.cache_clear()
    try:
        assert main(["fit", "--gpu", "T4"]) == 0
        out, err = capsys.readouterr()
        assert "formula" in out and "'python -m planner compile'" in err
    finally:
        shipped.cache_clear()


def test_an_interrupted_write_is_refused(monkeypatch, tmp_path):
    """Replace the numbers first: under the old header they are refused."""
    save(shipped(), tmp_path / "sd15")
    other = Library(
        dict(shipped().versions), shipped().routines, shipped().modules, {"vae": np.array([[4, 0, 0, 0, 0]])}
    )
    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr("os.replace", interrupted_after_one())
        save(other, tmp_path / "sd15")
    with pytest.raises(NoProgram, match="is damaged"):
        read(tmp_path / "sd15")


def interrupted_after_one():
    real, done = os.replace, []

    def replace(source, target):
        if done:
            raise KeyboardInterrupt
        done.append(target)
        real(source, target)

    return replace


def test_a_library_survives_being_written_and_read(tmp_path):
    save(shipped(), tmp_path / "copy")
    copy = read(tmp_path / "copy")
    assert encode(copy) == encode(shipped())
    assert copy.routines.keys() == shipped().routines.keys()
    assert (tmp_path / "copy.bin").read_bytes() == SHIPPED.with_suffix(".bin").read_bytes()


def test_another_format_is_refused_and_says_what_to_do():
    header, numbers = encode(shipped())
    other = json.dumps(json.loads(header) | {"format": 99})
    with pytest.raises(NoProgram, match="is no memory program of format 2 - 'python -m planner compile'"):
        decode(other, numbers, "a file")


def test_missing_files_are_reported(monkeypatch, tmp_path):
    monkeypatch.setattr("planner.programs.files.SHIPPED", tmp_path / "nothing")
    shipped.cache_clear()
    try:
        with pytest.raises(NoProgram, match="cannot be read"):
            shipped()
        library, notice = find()
        assert library is None and "until then the formula answers" in notice
    finally:
        shipped.cache_clear()


def test_a_full_disk_leaves_the_programs_that_were_there(tmp_path, monkeypatch):
    save(shipped(), tmp_path / "sd15")
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    other = Library(
        dict(shipped().versions), shipped().routines, shipped().modules, {"vae": np.array([[4, 0, 0, 0, 0]])}
    )
    real = Path.write_bytes

    def half(path, content):
        if ".json" in path.name:
            real(path, content[:100])
            raise OSError(28, "No space left on device")
        return real(path, content)

    monkeypatch.setattr(Path, "write_bytes", half)
    with pytest.raises(OSError, match="No space left"):
        save(other, tmp_path / "sd15")
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_a_full_disk_is_not_a_failure_of_the_versions(monkeypatch, capsys, other_versions):
    child(monkeypatch, "import os, sys; print('No space left on device', file=sys.stderr); sys.exit(os.EX_IOERR)")
    assert main(["compile"]) == 2
    err = capsys.readouterr().err
    assert "error: memory programs cannot be written to " in err and "set TMPDIR to a folder with room" in err
    assert "(No space left on device)" in err and "Traceback" not in err
    assert programs.last_failure() is None


def test_the_child_reports_a_full_disk(monkeypatch, capsys, tmp_path):
    from planner.tracing import compiler

    monkeypatch.setattr(compiler, "compile_library", lambda *_: shipped())
    monkeypatch.setattr(sys, "argv", ["planner.tracing.compiler", str(tmp_path / "a-file" / "program")])
    (tmp_path / "a-file").touch()
    with pytest.raises(SystemExit) as caught:
        compiler.main()
    assert caught.value.code == os.EX_IOERR
    assert capsys.readouterr().err.splitlines()[-1] in ("Not a directory", "File exists")


@pytest.mark.parametrize("refusal", ["history", "lock"])
def test_a_compile_that_cannot_be_kept_is_one_line(monkeypatch, capsys, fast_compile, own_history, refusal):
    def full(*_, **__):
        if refusal == "history":
            raise HistoryRefused(own_history, "written", "database or disk is full", "free space")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(*(Store, "save_program", full) if refusal == "history" else ("cache.programs._alone", full))
    assert main(["compile"]) == 2
    err = capsys.readouterr().err
    assert (f"{own_history.parent}" in err and "is full)" in err) or "(No space left on device)" in err
    assert "Traceback" not in err and err.splitlines()[-1].startswith("error: ")
