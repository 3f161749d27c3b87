"""Memory programs for the libraries that are installed: the shipped ones, those compiled here, or how to get them.

Programs belong to the versions they were traced from. When others are installed, that is said, a compile is started in
the background, and until it is done the shipped programs answer.
"""

import contextlib
import fcntl
import json
import subprocess
import sys
import tempfile
from collections.abc import Callable, Generator
from pathlib import Path
from typing import NamedTuple

from cache.versions import installed
from planner.errors import NoProgram, PlannerError
from planner.program import LIBRARIES, SHIPPED, Library, encode, read, shipped

ROOT = Path(__file__).parents[1]


class CompileFailed(PlannerError):
    """The installed versions could not be compiled; the message says why."""


class Found(NamedTuple):
    """The library to plan with, None where there is none, and what the user must know about it, or None."""

    library: Library | None
    notice: str | None


def wanted_versions() -> dict[str, str]:
    """The installed releases that programs depend on, without their builds."""
    versions = installed()
    return {name: versions[name].partition("+")[0] for name in LIBRARIES}


def find() -> Found:
    """The programs of the installed versions, else the shipped ones with a notice."""
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
    return Found(library, f"{reason}; 'python -m planner compile' makes new ones, {until}")


def _stored(versions: dict[str, str]) -> Library | None:
    from cache.history_file import HistoryError
    from cache.store import Store

    try:
        return Store().program(versions)
    except (HistoryError, NoProgram):
        # Without a history nothing was kept; a program of another format is compiled again.
        return None


@contextlib.contextmanager
def _alone() -> Generator[bool]:
    """Whether no other compile is under way; while inside, none begins."""
    from cache.history_file import default_path

    path = default_path()
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path.with_name(f"{path.name}.compile.lock"), "a") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
        else:
            yield True


def repair_in_background() -> None:
    """Start a compile that outlives this process; nothing happens while another is under way."""
    with _alone() as alone:
        if not alone:
            return
    subprocess.Popen(
        [sys.executable, "-m", "planner", "compile"],
        cwd=ROOT,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )


def compile_installed(report: Callable[[float, str], None]) -> str:
    """Compile the installed versions in a child process and keep the result; returns what became of it.

    The shipped files are written anew when they are for these versions or missing; else the history keeps the program.

    Raises:
        CompileFailed: the child could not compile them, or another compile is under way.
    """
    with _alone() as alone, tempfile.TemporaryDirectory() as folder:
        if not alone:
            raise CompileFailed("another compile is under way - wait for it")
        library = _compiled(Path(folder) / "program", report)
        try:
            before = shipped()
        except NoProgram:
            before = None
        if before is None or dict(before.versions) == dict(library.versions):
            header, numbers = encode(library)
            if before is not None and encode(before) == (header, numbers):
                return "the shipped memory programs are the same, byte for byte"
            SHIPPED.parent.mkdir(exist_ok=True)
            SHIPPED.with_suffix(".json").write_text(header)
            SHIPPED.with_suffix(".bin").write_bytes(numbers)
            return f"{SHIPPED.parent} has new memory programs"
        from cache.store import Store

        store = Store()
        store.save_program(library)
        return f"the history {store.path} has memory programs for the installed versions"


def _compiled(path: Path, report: Callable[[float, str], None]) -> Library:
    child = subprocess.Popen(
        [sys.executable, "-m", "planner.compiler", str(path)],
        cwd=ROOT,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        errors="replace",
    )
    assert child.stdout is not None
    try:
        for line in child.stdout:
            with contextlib.suppress(ValueError, KeyError):
                message = json.loads(line)
                report(message["done"], message["what"])
        _, errors = child.communicate()
    finally:
        child.kill()
        child.wait()
    if child.returncode:
        last = errors.strip().rpartition("\n")[2][:500] or f"exit code {child.returncode}"
        raise CompileFailed(f"the installed versions could not be compiled ({last}) - install the pinned ones")
    return read(path)
