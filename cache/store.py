"""The history: one SQLite file, reached through sqlite-utils.

A connection belongs to its thread, so each call opens its own. Writers take ``BEGIN IMMEDIATE``: a deferred
transaction that reads and then writes fails at once under WAL when another writer came between.
"""

import contextlib
import fcntl
import json
import os
import shutil
import sqlite3
import uuid
from collections.abc import Generator, Mapping
from dataclasses import asdict, fields
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from urllib.parse import quote

import platformdirs
from sqlite_utils import Database

from cache.migrations import migrations
from cache.records import ANSWERS, SAME_KEY, Environment, Measured, Measurement, Prediction
from planner.components import ModelFacts
from planner.errors import InvalidArgument, PlannerError
from planner.request import GenerationRequest
from planner.units import GIB

BUSY_TIMEOUT_S = 30
_BOOLEANS = ("safety_checker", "vae_tiling", "vae_slicing", "attention_slicing", "channels_last")


class HistoryError(PlannerError):
    """The history cannot be used; the message says why and what to do."""


def default_path() -> Path:
    """``PLANNER_DB``, or ``planner.db`` in the user's data directory."""
    named = os.environ.get("PLANNER_DB")
    if not named:
        return Path(platformdirs.user_data_dir("will-it-fit")) / "planner.db"
    try:
        return Path(named).expanduser()
    except RuntimeError as error:
        raise HistoryError(f"PLANNER_DB names no home directory ({error}), got {named!r} - set it to a file") from None


def now() -> str:
    """UTC, to the microsecond, as text that sorts by time."""
    return datetime.now(UTC).isoformat(timespec="microseconds")


def _request_of(row: Mapping[str, Any]) -> GenerationRequest:
    values = {field.name: row[field.name] for field in fields(GenerationRequest)}
    return GenerationRequest.from_dict(values | {name: bool(values[name]) for name in _BOOLEANS})


def _was_squeezed(run: Measurement, free_bytes: int | None) -> bool:
    measured = run.measured
    if measured.outcome == "ok" and not measured.num_alloc_retries:
        return False
    # What was free then is after our own context, which takes less than a GiB on every card.
    then = measured.free_before_bytes
    return bool(run.holders) or (free_bytes is not None and then is not None and free_bytes > then + GIB)


class Store:
    """The history in one file. Opening it makes, migrates, checks and if need be sets aside the file.

    `moved_aside` is the new name of a damaged file that was found, else None.

    Raises:
        HistoryError: the file cannot be opened, or was written by a newer version.
    """

    def __init__(self, path: Path | str | None = None):
        self.path = Path(path) if path is not None else default_path()
        self.moved_aside: Path | None = None
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with self._file_lock():
                self._check_or_move_aside()
                self._migrate()
        except (OSError, sqlite3.OperationalError) as error:
            raise HistoryError(
                f"the history {self.path} cannot be opened ({error}) - set PLANNER_DB to a file you may write"
            ) from error

    @contextlib.contextmanager
    def _file_lock(self) -> Generator[None]:
        # Making the file, switching to WAL and moving a damaged file are not covered by SQLite's own locks.
        with open(self.path.with_name(f"{self.path.name}.lock"), "a") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield

    def _check_or_move_aside(self) -> None:
        if not self.path.exists():
            return
        try:
            with self._connect() as db:
                healthy = db.execute("PRAGMA quick_check(1)").fetchone()[0] == "ok"
        except sqlite3.OperationalError:
            raise
        except sqlite3.DatabaseError:
            healthy = False
        if healthy:
            return
        stamp = datetime.now(UTC).strftime("%Y%m%dT%H%M%S%f")
        for suffix in ("", "-wal", "-shm"):
            part = self.path.with_name(f"{self.path.name}{suffix}")
            if part.exists():
                moved = self.path.with_name(f"{self.path.name}.damaged-{stamp}{suffix}")
                shutil.move(part, moved)
                self.moved_aside = self.moved_aside or moved

    def _migrate(self) -> None:
        with self._connect(create=True) as db:
            db.enable_wal()
            with self._immediate(db):
                known = {migration.name for migration in migrations._migrations}
                unknown = [step.name for step in migrations.applied(db) if step.name not in known]
                if unknown:
                    raise HistoryError(
                        f"{self.path} was written by a newer version (migration {unknown[0]} is unknown here) - "
                        "upgrade, or set PLANNER_DB to another file"
                    )
                migrations.apply(db)

    @contextlib.contextmanager
    def _connect(self, *, create: bool = False) -> Generator[Database]:
        # Only opening makes a file: one that vanished under a running server must not come back without its tables.
        address = f"file:{quote(str(self.path.absolute()))}?mode={'rwc' if create else 'rw'}"
        connection = sqlite3.connect(address, uri=True, timeout=BUSY_TIMEOUT_S, isolation_level=None)
        try:
            connection.execute("PRAGMA foreign_keys = ON")
            yield Database(connection)
        finally:
            connection.close()

    @staticmethod
    @contextlib.contextmanager
    def _immediate(db: Database) -> Generator[None]:
        db.execute("BEGIN IMMEDIATE")
        try:
            yield
        except BaseException:
            db.rollback()
            raise
        db.commit()

    @contextlib.contextmanager
    def _writing(self) -> Generator[Database]:
        with self._connect() as db, self._immediate(db):
            yield db

    def damaged_files(self) -> list[Path]:
        """Files that were set aside next to the history, oldest first."""
        aside = self.path.parent.glob(f"{self.path.name}.damaged-*")
        return sorted(path for path in aside if not path.name.endswith(("-wal", "-shm")))

    # Measurements

    def save_measurement(
        self,
        request: GenerationRequest,
        environment: Environment,
        measured: Measured,
        *,
        predictions: tuple[Prediction, ...] = (),
        holders: tuple[dict[str, Any], ...] = (),
    ) -> str:
        """Keep one run; returns its new id."""
        with self._writing() as db:
            return self._insert_measurement(db, request, environment, measured, predictions, holders)

    def _insert_measurement(
        self,
        db: Database,
        request: GenerationRequest,
        environment: Environment,
        measured: Measured,
        predictions: tuple[Prediction, ...],
        holders: tuple[dict[str, Any], ...],
    ) -> str:
        measurement_id = str(uuid.uuid4())
        self._keep_shared(db, request, environment)
        values = asdict(measured)
        stages = values.pop("stages")
        row = {
            "id": measurement_id,
            "request_id": request.request_id,
            "environment_id": environment.environment_id,
            "created_at": now(),
            "holders": json.dumps(list(holders)),
        }
        db.table("measurements").insert(row | values)
        db.table("stages").insert_all({"measurement_id": measurement_id} | stage for stage in stages)
        db.table("predictions").insert_all(
            {"measurement_id": measurement_id} | asdict(prediction) | {"stages": json.dumps(prediction.stages)}
            for prediction in predictions
        )
        return measurement_id

    @staticmethod
    def _keep_shared(db: Database, request: GenerationRequest, environment: Environment) -> None:
        db.table("requests").insert({"id": request.request_id} | request.canonical().to_dict(), ignore=True)
        db.table("environments").insert({"id": environment.environment_id} | asdict(environment), ignore=True)

    def measurements(self, where: str = "1", arguments: Mapping[str, Any] | None = None) -> list[Measurement]:
        """The runs that meet a condition over m (measurements), r (requests) and e (environments), newest first."""
        with self._connect() as db:
            sql = f"""
                select m.* from measurements m
                join requests r on r.id = m.request_id join environments e on e.id = m.environment_id
                where {where} order by m.created_at desc
            """
            rows = list(db.query(sql, dict(arguments or {})))
            requests = {row["id"]: _request_of(row) for row in db.table("requests").rows}
            environments = {row["id"]: Environment.from_row(row) for row in db.table("environments").rows}
            ids = [row["id"] for row in rows]
            stages = self._children(db, "stages", ids)
            predictions = self._children(db, "predictions", ids)
        return [
            Measurement(
                measurement_id=row["id"],
                created_at=row["created_at"],
                request=requests[row["request_id"]],
                environment=environments[row["environment_id"]],
                measured=Measured.from_dict(
                    {field.name: row[field.name] for field in fields(Measured) if field.name != "stages"}
                    | {"stages": stages.get(row["id"], [])}
                ),
                holders=tuple(json.loads(row["holders"])),
                predictions=tuple(
                    Prediction(**prediction | {"stages": json.loads(prediction["stages"])})
                    for prediction in predictions.get(row["id"], [])
                ),
            )
            for row in rows
        ]

    @staticmethod
    def _children(db: Database, table: str, ids: list[str]) -> dict[str, list[dict[str, Any]]]:
        where = "measurement_id in (select value from json_each(?))"
        found: dict[str, list[dict[str, Any]]] = {}
        for row in db.table(table).rows_where(where, [json.dumps(ids)], order_by="rowid"):
            found.setdefault(row.pop("measurement_id"), []).append(row)
        return found

    def measurement(self, measurement_id: str) -> Measurement:
        """The run of this id, or of the only id that begins so.

        Raises:
            InvalidArgument: no run's id, or more than one, begins so.
        """
        found = (
            self.measurements("substr(m.id, 1, length(:id)) = :id", {"id": measurement_id}) if measurement_id else []
        )
        if len(found) != 1:
            rule = "must be the id of a run" if not found else f"must name one run, this begins {len(found)}"
            raise InvalidArgument("id", rule, measurement_id, "'python -m planner history list' shows them")
        return found[0]

    def delete_measurement(self, measurement_id: str) -> None:
        """Remove one run and what hangs on it. Requests and environments stay; other runs may share them.

        Raises:
            InvalidArgument: as `measurement`.
        """
        full_id = self.measurement(measurement_id).measurement_id
        with self._writing() as db:
            for table in ("stages", "predictions"):
                db.table(table).delete_where("measurement_id = ?", [full_id])
            db.execute("update jobs set measurement_id = null where measurement_id = ?", [full_id])
            db.table("measurements").delete_where("id = ?", [full_id])

    def already_measured(
        self, request: GenerationRequest, environment: Environment, free_bytes: int | None = None
    ) -> Measurement | None:
        """The newest run of this very request under the same key that says something of memory.

        A run that met the end of the card says so only of a card as full as it was: it is left out when others held
        memory then, or when more is free now (`free_bytes`).
        """
        same = " and ".join(f"e.{name} is :{name}" for name in SAME_KEY)
        outcomes = ", ".join(f"'{outcome}'" for outcome in ANSWERS)
        arguments = {name: getattr(environment, name) for name in SAME_KEY} | {"request_id": request.request_id}
        found = self.measurements(f"m.request_id = :request_id and m.outcome in ({outcomes}) and {same}", arguments)
        return next((run for run in found if not _was_squeezed(run, free_bytes)), None)

    # Model facts

    def save_model_facts(self, model: str, versions: Mapping[str, str], counts: Mapping[str, tuple[int, int]]) -> None:
        """Keep (parameters, weights bytes) by component, as counted from the modules of these versions."""
        key = {"model": model, "diffusers": versions["diffusers"], "transformers": versions["transformers"]}
        with self._writing() as db:
            db.table("model_facts").insert_all(
                (
                    key | {"component": component, "parameters": parameters, "weights_bytes": size_bytes}
                    for component, (parameters, size_bytes) in counts.items()
                ),
                replace=True,
            )

    def model_facts(self, model: str, versions: Mapping[str, str]) -> ModelFacts | None:
        """The counts kept for these versions, or None when none were made yet."""
        where = "model = ? and diffusers = ? and transformers = ?"
        with self._connect() as db:
            rows = list(
                db.table("model_facts").rows_where(where, [model, versions["diffusers"], versions["transformers"]])
            )
        if not rows:
            return None
        return ModelFacts(
            parameters={row["component"]: row["parameters"] for row in rows},
            source=f"counted from the modules of diffusers {versions['diffusers']} and "
            f"transformers {versions['transformers']}",
        )

    # Jobs

    def add_job(self, job_id: str, request: GenerationRequest, environment: Environment, owner: str) -> None:
        """Note a job before anything else happens to it."""
        with self._writing() as db:
            self._keep_shared(db, request, environment)
            db.table("jobs").insert(
                {
                    "id": job_id,
                    "request": json.dumps(request.to_dict()),
                    "request_id": request.request_id,
                    "environment_id": environment.environment_id,
                    "state": "queued",
                    "owner": owner,
                    "created_at": now(),
                }
            )

    def start_job(self, job_id: str) -> None:
        """The job has its card."""
        with self._writing() as db:
            db.table("jobs").update(job_id, {"state": "running"})

    def end_job(
        self,
        job_id: str,
        request: GenerationRequest,
        environment: Environment,
        measured: Measured,
        *,
        predictions: tuple[Prediction, ...] = (),
        holders: tuple[dict[str, Any], ...] = (),
    ) -> str:
        """Keep the job's run and close the job, both or neither; returns the run's id."""
        with self._writing() as db:
            measurement_id = self._insert_measurement(db, request, environment, measured, predictions, holders)
            values = {"state": measured.outcome, "ended_at": now(), "reason": measured.reason}
            db.table("jobs").update(job_id, values | {"measurement_id": measurement_id})
        return measurement_id

    def job(self, job_id: str) -> dict[str, Any] | None:
        """The job's row, or None."""
        with self._connect() as db:
            return next(iter(db.table("jobs").rows_where("id = ?", [job_id])), None)

    def open_jobs(self) -> list[dict[str, Any]]:
        """Jobs that are queued or running, in the order they came."""
        with self._connect() as db:
            return list(db.table("jobs").rows_where("state in ('queued', 'running')", order_by="created_at"))

    def close_orphan(self, row: Mapping[str, Any], reason: str) -> None:
        """Close a job whose owner is gone, leaving a failed run in the history; nothing if it was closed meanwhile."""
        with self._writing() as db:
            current = next(iter(db.table("jobs").rows_where("id = ?", [row["id"]])), None)
            if current is None or current["state"] not in ("queued", "running"):
                return
            request = GenerationRequest.from_dict(json.loads(row["request"]))
            found = next(iter(db.table("environments").rows_where("id = ?", [row["environment_id"]])))
            measured = Measured(outcome="failed", reason=reason)
            measurement_id = self._insert_measurement(db, request, Environment.from_row(found), measured, (), ())
            values = {"state": "failed", "ended_at": now(), "reason": reason, "measurement_id": measurement_id}
            db.table("jobs").update(row["id"], values)
