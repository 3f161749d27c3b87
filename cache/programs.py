"""Find the memory programs for the installed libraries: shipped, compiled here, or yet to be compiled.

Programs are for the versions that they were traced from. If other versions are installed, the user is told, a compile
starts in the background, and until it ends the shipped programs answer.
"""

import contextlib
import fcntl
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Generator
from pathlib import Path
from typing import NamedTuple

from cache.history.location import HistoryError, default_path
from cache.machine.versions import INSTALL, check_installed, installed, missing
from cache.refusals import why
from planner.components import LIBRARIES
from planner.errors import NoProgram, PlannerError
from planner.programs.files import SHIPPED, encode, read, save, shipped
from planner.programs.library import Library

ROOT = Path(__file__).parents[1]
_ROOM = "free space there and make it writable, or set PLANNER_DB to a file elsewhere"
_ADVICE = "'python -m planner compile' makes new ones"


# Python warns of a running child to which nothing refers, so children stay in this list.
_started: list[subprocess.Popen] = []


class CompileFailed(PlannerError):
    """The installed versions could not be compiled; `why` is the reason without the advice."""

    def __init__(self, message: str, why: str | None = None):
        self.why = why or message
        super().__init__(message)


class _NoPlace(CompileFailed):
    """There is no place for the result of a compile, which says nothing about the versions."""


class Found(NamedTuple):
    """Hold the library to plan with, or None, and a notice about it for the user, or None."""

    library: Library | None
    notice: str | None


def wanted_versions() -> dict[str, str]:
    """Return the installed releases that programs depend on, without their build tags."""
    versions = installed()
    return {name: versions[name].partition("+")[0] for name in LIBRARIES}


def find() -> Found:
    """Find the programs of the installed versions, else the shipped ones with a notice.

    If libraries are missing, nothing can be compiled, and predictions are for the versions of the shipped programs.
    """
    lacking = missing()
    if lacking:
        try:
            return Found(shipped(), None)
        except NoProgram as error:
            return Found(None, f"{error}; {INSTALL}, until then the formula answers")
    versions = wanted_versions()
    try:
        library = shipped()
    except NoProgram as error:
        library, reason = None, str(error)
    else:
        if dict(library.versions) == versions:
            return Found(library, None)
        made_for = library.versions
        differ = [name for name in LIBRARIES if versions[name] != made_for.get(name)]
        names = ", ".join(f"{name} {versions[name]} (but for {made_for.get(name)})" for name in differ)
        reason = f"the shipped memory programs are not for the installed {names}"
    stored = _stored(versions)
    if stored:
        return Found(stored, None)
    until = "until then the shipped ones answer" if library else "until then the formula answers"
    why = last_failure()
    makes = f"making new ones failed ({why}), 'python -m planner compile' tries again" if why else _ADVICE
    return Found(library, f"{reason}; {makes}, {until}")


def _stored(versions: dict[str, str]) -> Library | None:
    # The store brings sqlite-utils and pandas, which would nearly double the time of a ``fit``.
    from cache.history.store import Store

    try:
        return Store().program(versions)
    except (HistoryError, NoProgram):
        # Without a history no program was kept, and a program of another format must be compiled again.
        return None


def _beside_the_history(suffix: str) -> Path:
    path = default_path()
    return path.with_name(f"{path.name}.compile.{suffix}")


@contextlib.contextmanager
def _alone() -> Generator[bool]:
    """Lock out other compiles, and yield False if one is under way already.

    Raises:
        OSError: there is no place for the lock.
    """
    path = _beside_the_history("lock")
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "a") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
        else:
            yield True


def is_compiling() -> bool:
    """Tell whether a compile is under way in any process."""
    try:
        with _alone() as alone:
            return not alone
    except (OSError, PlannerError):
        return False


def last_failure() -> str | None:
    """Return the reason why the last compile of the installed versions failed, or None."""
    try:
        kept = json.loads(_beside_the_history("failed").read_text())
        return kept["why"] if kept["versions"] == wanted_versions() else None
    except (OSError, ValueError, LookupError, TypeError, PlannerError):
        return None


def repair_in_background() -> bool:
    """Start a compile that outlives this process, and return whether one is under way.

    None is started while another one runs, after one of the same versions failed, or if libraries are missing.
    """
    if missing():
        return False
    try:
        with _alone() as alone:
            if not alone:
                return True
        if last_failure() is not None:
            return False
        child = subprocess.Popen(
            [sys.executable, "-m", "planner", "compile"],
            cwd=ROOT,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        _started.append(child)
    except (OSError, PlannerError):
        # Without a place for the lock there is none for the result, and planning goes on without.
        return False
    return True


def compile_installed(report: Callable[[float, str], None]) -> str:
    """Compile the installed versions in a child process, keep the result, and say where.

    `report` is called with the part that is done, in [0, 1], and the current step. The shipped files are written anew
    if they are missing or for these versions; else the history keeps the programs.

    Raises:
        CompileFailed: the child could not compile them, another compile is under way, or there is no place to keep it.
        NotInstalled: libraries are missing, so there is nothing to trace.
    """
    check_installed()
    try:
        with _alone() as alone, tempfile.TemporaryDirectory() as folder:
            if not alone:
                raise CompileFailed("another compile is under way - wait for it")
            failed = _beside_the_history("failed")
            try:
                library = _compiled(Path(folder) / "program", report)
            except _NoPlace:
                raise
            except CompileFailed as error:
                failed.write_text(json.dumps({"versions": wanted_versions(), "why": error.why}))
                raise
            failed.unlink(missing_ok=True)
            return _kept(library)
    except OSError as error:
        # An error without a file name is from beside the history; other places are the shipped files and TMPDIR.
        where = error.filename or _beside_the_history("failed").parent
        raise CompileFailed(f"memory programs cannot be kept in {where} ({why(error)}) - {_ROOM}") from None


def _kept(library: Library) -> str:
    try:
        before = shipped()
    except NoProgram:
        before = None
    if before is not None and encode(before) == encode(library):
        return "the shipped memory programs are the same, byte for byte"
    if before is None or dict(before.versions) == dict(library.versions):
        save(library, SHIPPED)
        return f"{SHIPPED.parent} has new memory programs"
    # This is a late import for the reason in `_stored`.
    from cache.history.store import Store

    store = Store()
    store.save_program(library)
    return f"the history {store.path} has memory programs for the installed versions"


def _compiled(path: Path, report: Callable[[float, str], None]) -> Library:
    # stderr goes to a file: nothing reads it while progress is read, so a full pipe would stop the child.
    with tempfile.TemporaryFile("w+", errors="replace") as errors:
        child = subprocess.Popen(
            [sys.executable, "-m", "planner.tracing.compiler", str(path)],
            cwd=ROOT,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
            errors="replace",
        )
        assert child.stdout is not None
        try:
            for line in child.stdout:
                with contextlib.suppress(ValueError, KeyError, TypeError):
                    message = json.loads(line)
                    report(message["done"], message["what"])
            child.wait()
        finally:
            child.kill()
            child.wait()
            child.stdout.close()
        if child.returncode:
            errors.seek(0)
            said = errors.read().strip().rpartition("\n")[2][:500] or f"exit code {child.returncode}"
            if child.returncode == os.EX_IOERR:
                advice = "free space there, or set TMPDIR to a folder with room"
                raise _NoPlace(f"memory programs cannot be written to {path.parent} ({said}) - {advice}", said)
            raise CompileFailed(
                f"the installed versions could not be compiled ({said}) - install the pinned ones", said
            )
    return read(path)
