"""Programs for other versions than the shipped ones: noticed, said, made, kept and found again."""

import json
import subprocess
import sys

import pytest

from cache import programs
from cache.programs import CompileFailed, compile_installed, find
from cache.store import Store
from planner.cli import main
from planner.errors import NoProgram
from planner.flatten import events_of
from planner.program import LIBRARIES, SHIPPED, Library, decode, encode, read, save, shipped
from planner.request import GenerationRequest


@pytest.fixture
def other_versions(monkeypatch):
    """A newer diffusers than the programs are for."""
    versions = dict(programs.installed()) | {"diffusers": "0.43.0"}
    monkeypatch.setattr("cache.programs.installed", lambda: versions)
    return {name: versions[name].partition("+")[0] for name in LIBRARIES}


@pytest.fixture
def fast_compile(monkeypatch, other_versions):
    """A child that writes the shipped programs under the installed versions, and says how far it is."""
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


def test_other_versions_are_noticed_and_the_shipped_programs_answer_until_then(other_versions):
    library, notice = find()
    assert library is shipped()
    assert "not for the installed diffusers 0.43.0 (but for 0.42.1)" in notice
    assert "python -m planner compile" in notice


def test_what_was_compiled_is_kept_and_found_again(fast_compile, other_versions, own_history):
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
    monkeypatch.setattr("cache.programs.repair_in_background", lambda: started.append(True))
    assert main(["fit", "--gpu", "T4"]) == 0
    out, err = capsys.readouterr()
    assert started == [True]
    assert "dry-run" in out and "not for the installed diffusers 0.43.0" in err and "in the background" in err


def test_compile_does_nothing_when_there_is_nothing_to_do(capsys):
    assert main(["compile"]) == 0
    assert "are there" in capsys.readouterr().err


def test_compile_makes_what_is_missing(capsys, fast_compile):
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


def test_a_library_survives_being_written_and_read(tmp_path):
    save(shipped(), tmp_path / "copy")
    copy = read(tmp_path / "copy")
    assert encode(copy) == encode(shipped())
    assert copy.routines.keys() == shipped().routines.keys()
    assert (tmp_path / "copy.bin").read_bytes() == SHIPPED.with_suffix(".bin").read_bytes()


def test_another_format_is_refused_and_says_what_to_do():
    header, numbers = encode(shipped())
    other = json.dumps(json.loads(header) | {"format": 99})
    with pytest.raises(NoProgram, match="has format 99, not 1 - 'python -m planner compile'"):
        decode(other, numbers, "a file")


def test_missing_files_are_said(monkeypatch, tmp_path):
    monkeypatch.setattr("planner.program.SHIPPED", tmp_path / "nothing")
    shipped.cache_clear()
    try:
        with pytest.raises(NoProgram, match="cannot be read"):
            shipped()
        library, notice = find()
        assert library is None and "until then the formula answers" in notice
    finally:
        shipped.cache_clear()
