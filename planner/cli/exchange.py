"""The commands ``history export``, ``backup`` and ``import``: move runs between machines as a file, and keep a copy."""

import contextlib
import sys
from collections.abc import Generator, Sequence
from pathlib import Path
from typing import BinaryIO

import click

from cache.exchange.lines import lines_in, lines_of, read_runs
from cache.files import checked_place, write_file
from cache.history.file import HistoryFile
from cache.records import Measurement
from planner.answer import SCHEMA
from planner.cli.arguments import json_option
from planner.cli.history import count_text, open_store
from planner.cli.output import print_json, say
from planner.errors import InvalidArgument

STANDARD = "-"


@contextlib.contextmanager
def reading(argument: str, name: str) -> Generator[BinaryIO]:
    """Open the file of this name, or standard input for ``-``, as bytes.

    Raises:
        InvalidArgument: it cannot be read.
    """
    try:
        # `nullcontext` leaves standard input open at the end.
        with contextlib.nullcontext(sys.stdin.buffer) if name == STANDARD else open(name, "rb") as file:
            yield file
    except OSError as error:
        raise InvalidArgument(argument, "must be a file that can be read, or -", name, error.strerror) from None


def _write(file: BinaryIO, runs: Sequence[Measurement]) -> None:
    file.writelines(f"{line}\n".encode() for line in lines_of(runs))


def _place(name: str, history: HistoryFile, *, is_forced: bool) -> Path:
    """Give the path to write to: not the history, nor a damaged one, nor a copy that it keeps."""
    path = Path(name)
    rule = None
    # A name that is too long, or has a NUL in it, is refused by the check below.
    with contextlib.suppress(OSError, ValueError):
        if history.is_part(path):
            rule = "must not be the history itself"
        elif history.is_set_aside(path):
            rule = "must not be a damaged history, since its runs can still be saved"
        elif history.is_kept_copy(path):
            rule = "must not be a copy that the history keeps from before an update"
    if rule:
        raise InvalidArgument("file", rule, name)
    return checked_place(name, is_forced=is_forced)


def _replace_option(command):
    """Add ``--force``, and pass it on as `is_forced`."""
    return click.option("--force", "is_forced", is_flag=True, help="Replace FILE if it is there.")(command)


def _cannot_write(name: str, error: OSError) -> InvalidArgument:
    return InvalidArgument("file", "must be a file that can be written, or -", name, error.strerror)


@click.command("export")
@click.argument("file")
@_replace_option
@json_option
def export_command(file: str, is_forced: bool, as_json: bool) -> int:
    """Write own and imported runs to FILE, one a line, oldest first; - is stdout."""
    to_stdout = file == STANDARD
    if to_stdout and as_json:
        raise InvalidArgument("json", "must not be given where the runs go to stdout", True, "name a file")
    store = open_store()
    runs = store.measurements()[::-1]
    if to_stdout:
        _write(sys.stdout.buffer, runs)
        sys.stdout.buffer.flush()
    else:
        path = _place(file, store, is_forced=is_forced)

        def make(part: Path) -> None:
            with part.open("wb") as lines:
                _write(lines, runs)

        try:
            write_file(path, make, is_forced=is_forced)
        except OSError as error:
            raise _cannot_write(file, error) from None
    say(f"exported {count_text(len(runs))} to {'stdout' if to_stdout else file}")
    if as_json:
        print_json({"schema": SCHEMA, "exported": len(runs)})
    return 0


@click.command("backup")
@click.argument("file")
@_replace_option
@json_option
def backup_command(file: str, is_forced: bool, as_json: bool) -> int:
    """Copy the whole history to FILE, also while it is in use; PLANNER_DB=FILE then opens the copy."""
    if file == STANDARD:
        raise InvalidArgument("file", "must be a file: a database cannot be written to stdout", file, "name one")
    store = open_store()
    path = _place(file, store, is_forced=is_forced)
    try:
        write_file(path, store.copy_to, is_forced=is_forced, mode_of=store.path)
    except OSError as error:
        raise _cannot_write(file, error) from None
    count = store.revision()[0]
    say(f"copied the history of {count_text(count)} to {file}")
    if as_json:
        print_json({"schema": SCHEMA, "copied": count, "file": str(path)})
    return 0


@click.command("import")
@click.argument("file")
@json_option
def import_command(file: str, as_json: bool) -> int:
    """Bring in the runs of FILE, all of them or none; known ones stay as they are. - is stdin."""
    with reading("file", file) as lines:
        # The file is read before the history is opened, so that a bad file does not create one.
        runs = read_runs(lines_in(lines))
    done = open_store().import_measurements(runs)
    say(f"imported {count_text(done.added)}, {done.known} {'was' if done.known == 1 else 'were'} known")
    if as_json:
        print_json({"schema": SCHEMA, "imported": done.added, "known": done.known})
    return 0
