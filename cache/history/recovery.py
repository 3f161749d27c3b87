"""Recover from a damaged history every run that can be read and is certainly as it was kept.

A run is spread over pages: its row, the rows of its stages and predictions, and the request and environment that it
shares with others. A hash of all of them is kept with a run, so that a missing or changed row shows. A run from before
there were such hashes is recovered where its stages and predictions are certainly all there.
"""

import contextlib
import json
import mmap
import sqlite3
from collections.abc import Callable, Iterator
from functools import cache
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

from sqlite_utils import Database

from cache.exchange.lines import line_of, measurement_of
from cache.history.file import DISCARDED, RECOVERED, HistoryFile, is_part_of
from cache.history.location import address, default_path
from cache.history.migrations import migrations
from cache.history.rows import BROKEN_ROW, RUN_COLUMNS, digest_of, measurement_from, prediction_from, request_from
from cache.history.sqlite_pages import MAGIC, PAGE_SIZES, Pages, Row, Value, size_said, wal_pages
from cache.history.store import Store
from cache.records import Environment, Measurement, StageMeasure
from cache.refusals import why
from planner.errors import InvalidArgument
from planner.request import GenerationRequest

# The columns that each table had when it was first released: no row has fewer.
_FIRST_COLUMNS = {
    "requests": 14,
    "environments": 20,
    "measurements": 18,
    "stages": 6,
    "predictions": 8,
    "jobs": 10,
}
_PARTS = ("stages", "predictions")
_TYPES: dict[str, tuple[type, ...]] = {"TEXT": (str,), "INTEGER": (int,), "REAL": (float, int), "BLOB": (bytes,)}


class _Column(NamedTuple):
    name: str
    types: tuple[type, ...]
    may_be_null: bool
    default: Value


class _Found(NamedTuple):
    """A row of a table: its number, its values by column (`kept`), and these with later columns as null (`filled`)."""

    rowid: int
    kept: dict[str, Any]
    filled: dict[str, Any]


class Salvaged(NamedTuple):
    """The runs that can be read, oldest first, and the count of others that left a trace."""

    runs: tuple[Measurement, ...]
    lost: int


class Recovered(NamedTuple):
    """The counts of runs that were saved, were there before and were lost, and the name that the file has now.

    `stays` says why a file that was set aside could not be renamed, so that it is still mentioned.
    """

    saved: int
    known: int
    lost: int
    path: Path
    stays: str | None = None


@cache
def _tables() -> dict[str, list[_Column]]:
    """List the columns of each table, in their order, as migrations make them."""
    found = {}
    with contextlib.closing(sqlite3.connect(":memory:")) as connection:
        migrations.apply(Database(connection))
        for table in _FIRST_COLUMNS:
            found[table] = [
                _Column(
                    name, _TYPES[kind], not not_null, connection.execute(f"select {default or 'null'}").fetchone()[0]
                )
                for _, name, kind, not_null, default, _ in connection.execute(f"pragma table_info({table})")
            ]
    return found


def _as_row_of(table: str, row: Row) -> _Found | None:
    """Read the row as one of this table; None where it cannot be."""
    columns = _tables()[table]
    if not _FIRST_COLUMNS[table] <= len(row.values) <= len(columns):
        return None
    kept: dict[str, Any] = {}
    for column, value in zip(columns, row.values, strict=False):
        if value is None:
            if not column.may_be_null:
                return None
        elif not isinstance(value, column.types):
            return None
        kept[column.name] = float(value) if isinstance(value, int) and float in column.types else value
    if not isinstance(row.values[0], str):
        return None
    return _Found(row.rowid, kept, {column.name: column.default for column in columns} | kept)


class _History:
    """The rows that are left of a history, by table."""

    def __init__(self, pages: Pages, is_whole: Callable[[str], bool]):
        self.tables: dict[str, list[_Found]] = {table: [] for table in _FIRST_COLUMNS}
        self.names: set[str] = set()
        self._is_whole = is_whole
        for row in pages.rows():
            if len(row.values) == 5 and row.values[0] == "table":
                self.names.add(str(row.values[1]))
            for table in _FIRST_COLUMNS:
                if found := _as_row_of(table, row):
                    self.tables[table].append(found)
        self._parts = {table: self._by_run(table) for table in _PARTS}
        self._owners = {
            table: {found.rowid: found.kept["measurement_id"] for found in self.tables[table]} for table in _PARTS
        }

    @property
    def is_ours(self) -> bool:
        """Tell whether it is a history at all, whatever is left of it."""
        return self.names >= {"measurements", "requests", "environments"} or bool(self.tables["measurements"])

    def _by_run(self, table: str) -> dict[str, list[_Found]]:
        by_run: dict[str, list[_Found]] = {}
        for found in sorted(self.tables[table], key=lambda found: found.rowid):
            of_run = by_run.setdefault(found.kept["measurement_id"], [])
            # A page that stands in the file twice says everything twice.
            if not of_run or of_run[-1] != found:
                of_run.append(found)
        return by_run

    def _requests(self) -> Iterator[GenerationRequest]:
        """Read the requests of the runs, and those of jobs, which are kept in the jobs' own rows."""
        for row in self.tables["requests"]:
            with contextlib.suppress(*BROKEN_ROW):
                yield request_from(row.filled)
        for row in self.tables["jobs"]:
            with contextlib.suppress(*BROKEN_ROW):
                yield GenerationRequest.from_dict(json.loads(row.kept["request"])).canonical()

    def _environments(self) -> Iterator[Environment]:
        for row in self.tables["environments"]:
            with contextlib.suppress(*BROKEN_ROW):
                yield Environment.from_row(row.filled)

    def _is_complete(self, table: str, run_id: str) -> bool:
        """Tell whether all rows that a run ever had in a table of parts are certainly there.

        They were kept one after another: where rows of others stand right before and after them, none is missing.
        """
        rowids = [found.rowid for found in self._parts[table].get(run_id, [])]
        if self._is_whole(table):
            return True
        owners = self._owners[table]
        is_block = bool(rowids) and rowids == list(range(rowids[0], rowids[-1] + 1))
        return is_block and rowids[-1] + 1 in owners and (rowids[0] == 1 or rowids[0] - 1 in owners)

    def _is_as_kept(self, row: _Found, parts: list[list[_Found]]) -> bool:
        digest = row.kept.get("digest")
        if digest is not None:
            return digest == digest_of(row.kept, *([part.kept for part in of_table] for of_table in parts))
        texts = (value for found in chain([row], *parts) for value in found.kept.values() if isinstance(value, str))
        return all(self._is_complete(table, row.kept["id"]) for table in _PARTS) and not any("\0" in t for t in texts)

    def runs(self) -> Iterator[Measurement]:
        """Read every run that is certainly as it was kept, and that an import would take in."""
        # Their ids are hashes of their content, so that a changed one has another id, which no run names.
        requests = {request.request_id: request for request in self._requests()}
        environments = {environment.environment_id: environment for environment in self._environments()}
        for row in self.tables["measurements"]:
            parts = [self._parts[table].get(row.kept["id"], []) for table in _PARTS]
            with contextlib.suppress(*BROKEN_ROW):
                if not self._is_as_kept(row, parts):
                    continue
                stages, predictions = ([_without_id(part.filled) for part in of_table] for of_table in parts)
                run = measurement_from(
                    [row.filled[name] for name in RUN_COLUMNS],
                    requests[row.kept["request_id"]],
                    environments[row.kept["environment_id"]],
                    [StageMeasure(**stage) for stage in stages],
                    map(prediction_from, predictions),
                )
                measurement_of(line_of(run), 1)
                yield run

    def traces(self) -> set[str]:
        """List the ids of runs that are named anywhere."""
        named = {found.kept["id"] for found in self.tables["measurements"]}
        for table in (*_PARTS, "jobs"):
            named |= {found.kept["measurement_id"] for found in self.tables[table]} - {None}
        return named


def _without_id(columns: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in columns.items() if name != "measurement_id"}


def _looks_whole(path: Path) -> Callable[[str], bool]:
    """Make a check of whether SQLite finds a table sound.

    Neither the file nor those beside it are touched.
    """

    @cache
    def is_whole(table: str) -> bool:
        try:
            with contextlib.closing(sqlite3.connect(f"{address(path, 'ro')}&immutable=1", uri=True)) as db:
                return db.execute(f"pragma quick_check({table})").fetchone() == ("ok",)
        except sqlite3.Error:
            return False

    return is_whole


def _salvaged_from(history: _History) -> Salvaged:
    runs = {run.measurement_id: run for run in history.runs()}
    in_order = sorted(runs.values(), key=lambda run: run.created_at)
    return Salvaged(tuple(in_order), len(history.traces() - runs.keys()))


def _best_of(path: Path, data: memoryview, newer: dict[int, bytes]) -> Salvaged | None:
    """Read with pages of the size that gives most runs; None where no size makes it a history."""
    is_whole = _looks_whole(path) if not newer else lambda _: False
    # The size in the header may be damaged too; 4096 is SQLite's default.
    likely = [size for size in (size_said(bytes(newer.get(1) or data[:100])), 4096) if size]
    for sizes in (dict.fromkeys(likely), [size for size in PAGE_SIZES if size not in likely]):
        read = (_History(Pages(data, newer, size), is_whole) for size in sizes)
        found = [_salvaged_from(history) for history in read if history.is_ours]
        if found:
            return max(found, key=lambda salvaged: len(salvaged.runs))
    return None


def _check_readable(path: Path, shown: str) -> None:
    unread = "must be a file that can be read"
    try:
        is_in_use, is_other = is_part_of(default_path(), path), path.exists() and not path.is_file()
    except (OSError, ValueError) as error:
        # The name is too long, or has a NUL in it.
        raise InvalidArgument("file", unread, shown, why(error)) from None
    if is_other:
        raise InvalidArgument("file", unread, shown, "it is a folder" if path.is_dir() else "it is no regular file")
    if is_in_use:
        rule = "must not be the history in use, whose runs are all there"
        raise InvalidArgument("file", rule, shown, "'python -m planner history list' shows them")


def salvage(path: Path, named: str | None = None) -> Salvaged:
    """Read every run of a damaged history that can be read.

    `named` is how the user wrote the path.

    The file itself is not changed.

    Raises:
        InvalidArgument: it is the history in use, cannot be read, or is no history.
        HistoryError: where the history in use would be cannot be told.
    """
    shown = str(path) if named is None else named
    _check_readable(path, shown)
    wal, beginning, found = path.with_name(f"{path.name}-wal"), b"", None
    try:
        with path.open("rb") as file:
            newer = wal_pages(wal.read_bytes()) if wal.is_file() else {}
            # An empty file cannot be mapped.
            if path.stat().st_size:
                mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
                with mapped, memoryview(mapped) as data:
                    beginning, found = bytes(data[: len(MAGIC)]), _best_of(path, data, newer)
    except OSError as error:
        raise InvalidArgument("file", "must be a file that can be read", shown, why(error)) from None
    if found is None:
        reason = "it is a database, and no run can be read in it" if beginning == MAGIC else "it is no SQLite file"
        raise InvalidArgument("file", "must be a damaged history of this planner", shown, reason)
    return found


def recover(store: Store, path: Path, salvaged: Salvaged) -> Recovered:
    """Save the salvaged runs into the history.

    A file that the history had set aside is mentioned no more.

    Raises:
        HistoryRefused: the history cannot keep them. The file stays as it is.
    """
    done = store.add_recovered(salvaged.runs)
    name, stays = put_away(store, path, RECOVERED)
    return Recovered(done.added, done.known, salvaged.lost, name, stays)


def put_away(history: HistoryFile, path: Path, suffix: str = DISCARDED) -> tuple[Path, str | None]:
    """Rename a file that the history had set aside, so that it is mentioned no more.

    Another stays where it is.

    Returns the name it has now, and why it could not be renamed, or None.
    """
    if not history.is_set_aside(path):
        return path, None
    try:
        return history.put_away(path, suffix), None
    except OSError as error:
        return path, why(error)
