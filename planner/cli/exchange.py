"""The commands ``history export`` and ``history import``: move runs between machines as a file."""

import contextlib
import errno
import os
import sys
from collections.abc import Generator, Sequence
from pathlib import Path
from typing import BinaryIO

import click

from cache.exchange.lines import lines_in, lines_of, read_runs
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


def _write_at_once(path: Path, runs: Sequence[Measurement]) -> None:
    """Write all lines at once, so that a reader finds either the old or the new file."""
    if path.exists() and not path.is_file():
        raise OSError(errno.EINVAL, "it is no regular file")
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        with part.open("xb") as file:
            _write(file, runs)
            file.flush()
            os.fsync(file.fileno())
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)


def _export_to(name: str, history: HistoryFile, runs: Sequence[Measurement]) -> None:
    # A link stays a link if the file that it leads to is replaced.
    path = Path(os.path.realpath(name))
    if history.is_part(path):
        raise InvalidArgument("file", "must not be the history itself", name)
    if history.is_set_aside(path):
        raise InvalidArgument("file", "must not be a damaged history, since its runs can still be saved", name)
    try:
        _write_at_once(path, runs)
    except OSError as error:
        raise InvalidArgument("file", "must be a file that can be written, or -", name, error.strerror) from None


@click.command("export")
@click.argument("file")
@json_option
def export_command(file: str, as_json: bool) -> int:
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
        _export_to(file, store, runs)
    say(f"exported {count_text(len(runs))} to {'stdout' if to_stdout else file}")
    if as_json:
        print_json({"schema": SCHEMA, "exported": len(runs)})
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
