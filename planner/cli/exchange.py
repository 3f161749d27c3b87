"""``history export`` and ``history import``: runs that go from one machine to another as a file."""

import argparse
import contextlib
import errno
import os
import sys
from collections.abc import Generator, Sequence
from pathlib import Path
from typing import BinaryIO

from cache.exchange.lines import lines_in, lines_of, read_runs
from cache.history.file import HistoryFile
from cache.records import Measurement
from planner.answer import SCHEMA
from planner.cli.history import count_text, open_store
from planner.cli.output import print_json, say
from planner.errors import InvalidArgument

STANDARD = "-"


@contextlib.contextmanager
def reading(argument: str, name: str) -> Generator[BinaryIO]:
    """The file of this name, or standard input for ``-``, as bytes.

    Raises:
        InvalidArgument: it cannot be read.
    """
    try:
        # Standard input stays open.
        with contextlib.nullcontext(sys.stdin.buffer) if name == STANDARD else open(name, "rb") as file:
            yield file
    except OSError as error:
        raise InvalidArgument(argument, "must be a file that can be read, or -", name, error.strerror) from None


def _write(file: BinaryIO, runs: Sequence[Measurement]) -> None:
    file.writelines(f"{line}\n".encode() for line in lines_of(runs))


def _write_at_once(path: Path, runs: Sequence[Measurement]) -> None:
    """All lines under the name, or what was there before: nobody ever reads half a file."""
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
    # Where a link leads, so that it still leads there.
    path = Path(os.path.realpath(name))
    if history.is_part(path):
        raise InvalidArgument("file", "must not be the history itself", name)
    if history.is_set_aside(path):
        raise InvalidArgument("file", "must not be a damaged history, whose runs can still be saved", name)
    try:
        _write_at_once(path, runs)
    except OSError as error:
        raise InvalidArgument("file", "must be one that can be written, or -", name, error.strerror) from None


def history_export(arguments: argparse.Namespace) -> int:
    """``history export``: own and imported runs, oldest first."""
    to_stdout = arguments.file == STANDARD
    if to_stdout and arguments.json:
        raise InvalidArgument("json", "must not be given where the runs go to stdout", True, "name a file")
    store = open_store()
    runs = store.measurements()[::-1]
    if to_stdout:
        _write(sys.stdout.buffer, runs)
        sys.stdout.buffer.flush()
    else:
        _export_to(arguments.file, store, runs)
    say(f"exported {count_text(len(runs))} to {'stdout' if to_stdout else arguments.file}")
    if arguments.json:
        print_json({"schema": SCHEMA, "exported": len(runs)})
    return 0


def history_import(arguments: argparse.Namespace) -> int:
    """``history import``: all of a file's runs or none of them."""
    with reading("file", arguments.file) as file:
        # Before the history is opened, so that a bad file leaves no trace.
        runs = read_runs(lines_in(file))
    done = open_store().import_measurements(runs)
    say(f"imported {count_text(done.added)}, {done.known} {'was' if done.known == 1 else 'were'} known")
    if arguments.json:
        print_json({"schema": SCHEMA, "imported": done.added, "known": done.known})
    return 0
