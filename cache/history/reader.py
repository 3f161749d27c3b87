"""Read measured runs from the history's file, through sqlite3 itself.

sqlite-utils, through which the store writes them, imports pandas: that takes twice the time of a whole ``fit``.
"""

import contextlib
import json
import sqlite3
from collections.abc import Collection, Generator, Iterator, Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

from cache.history.location import BUSY_TIMEOUT_S, address, default_path, is_default
from cache.history.rows import BROKEN_ROW, RUN_COLUMNS, measurement_from, prediction_from, request_from
from cache.history.schema import NotOurs, check_ours
from cache.records import Environment, Measurement, Prediction, StageMeasure
from cache.refusals import why
from planner.request import GenerationRequest

# From this many ids on, reading a whole table is faster than finding the rows of each id in it.
_MANY = 1000


def _columns(kind: Any) -> list[str]:
    return [field.name for field in fields(kind)]


_REQUEST, _ENVIRONMENT = _columns(GenerationRequest), _columns(Environment)
_STAGE, _PREDICTION = _columns(StageMeasure), _columns(Prediction)


@contextlib.contextmanager
def opened(path: Path) -> Generator[sqlite3.Connection]:
    """Open the file for reading only; nothing is made, migrated or checked.

    Raises:
        sqlite3.Error: there is no such file, or it cannot be opened.
        NotOurs: it was never a history, so it is not even looked at with a lock.
    """
    try:
        check_ours(path, is_default=is_default(path))
    except OSError as error:
        raise sqlite3.OperationalError(why(error)) from error
    with contextlib.closing(sqlite3.connect(address(path, "ro"), uri=True, timeout=BUSY_TIMEOUT_S)) as db:
        yield db


def runs_in(
    db: sqlite3.Connection,
    where: str = "1",
    arguments: Mapping[str, Any] | None = None,
    *,
    with_predictions: bool = True,
    skip_broken: bool = False,
) -> Iterator[Measurement]:
    """Read the runs that meet a condition, newest first.

    The condition is SQL over m (measurements), r (requests) and e (environments), with `arguments` for its parameters.
    Without `with_predictions` the runs have no predictions, which saves reading them. `skip_broken` leaves out a run
    whose request can no longer be asked or whose row is damaged.

    Raises:
        InvalidArgument: a request can no longer be asked, since a rule has become stricter.
    """
    tolerated = BROKEN_ROW if skip_broken else ()
    columns = ", ".join(f"m.{name}" for name in (*RUN_COLUMNS, "request_id", "environment_id"))
    query = f"""
        select {columns} from measurements m
        join requests r on r.id = m.request_id join environments e on e.id = m.environment_id
        where {where} order by m.created_at desc
    """
    rows = db.execute(query, arguments or {}).fetchall()
    # Many runs share a request and an environment, which are made once.
    requests: dict[str, GenerationRequest] = {}
    for request_id, *values in _rows_of(db, "requests", "id", _REQUEST, {row[-2] for row in rows}):
        with contextlib.suppress(*tolerated):
            requests[request_id] = request_from(dict(zip(_REQUEST, values, strict=True)))
    environments: dict[str, Environment] = {}
    for environment_id, *values in _rows_of(db, "environments", "id", _ENVIRONMENT, {row[-1] for row in rows}):
        with contextlib.suppress(*tolerated):
            environments[environment_id] = Environment.from_row(dict(zip(_ENVIRONMENT, values, strict=True)))
    run_ids = [row[0] for row in rows]
    stages = _parts_of(db, "stages", _STAGE, run_ids)
    predictions = _parts_of(db, "predictions", _PREDICTION, run_ids) if with_predictions else {}
    for row in rows:
        try:
            run = measurement_from(
                row[:-2],
                requests[row[-2]],
                environments[row[-1]],
                [StageMeasure(*values[1:]) for values in stages.pop(row[0], ())],
                [
                    prediction_from(dict(zip(_PREDICTION, values[1:], strict=True)))
                    for values in predictions.pop(row[0], ())
                ],
            )
        except tolerated:
            continue
        yield run


def _rows_of(
    db: sqlite3.Connection, table: str, key: str, columns: Sequence[str], ids: Collection[str]
) -> Iterator[tuple[Any, ...]]:
    """Read the key and these columns of the rows whose key is one of the ids, in the order of insertion."""
    query = f"select {key}, {', '.join(columns)} from {table}"
    if len(ids) < _MANY:
        of_these = f"where {key} in (select value from json_each(?))"
        return db.execute(f"{query} {of_these} order by rowid", [json.dumps(list(ids))])
    wanted = set(ids)
    return (row for row in db.execute(f"{query} order by rowid") if row[0] in wanted)


def _parts_of(
    db: sqlite3.Connection, table: str, columns: Sequence[str], run_ids: Collection[str]
) -> dict[str, list[tuple[Any, ...]]]:
    """Read the rows of a table of parts by run: the run's id, then these columns."""
    found: dict[str, list[tuple[Any, ...]]] = {}
    for row in _rows_of(db, table, "measurement_id", columns, run_ids):
        found.setdefault(row[0], []).append(row)
    return found


def revision_in(db: sqlite3.Connection) -> tuple[int, str]:
    """Count the runs and find when the last one was kept.

    Both together differ once a run was kept or deleted.
    """
    return db.execute("select count(*), coalesce(max(kept_at), '') from measurements").fetchone()


def revision(path: Path | None = None) -> tuple[str, int, str] | None:
    """Name the history and its `revision_in`.

    The value is None where the file is of an older schema or damaged.

    Raises:
        HistoryError: ``PLANNER_DB`` cannot name a file.
    """
    where = path or default_path()
    if not where.exists():
        return str(where), 0, ""
    try:
        with opened(where) as db:
            return str(where), *revision_in(db)
    except (sqlite3.Error, NotOurs):
        return None
