"""Keep measured runs, model facts, memory programs and jobs as rows of one SQLite file, through sqlite-utils."""

import contextlib
import getpass
import json
import os
import uuid
from collections.abc import Iterable, Mapping
from dataclasses import asdict, replace
from datetime import UTC, datetime
from typing import Any, NamedTuple

from sqlite_utils import Database

from cache.exchange.lines import line_of
from cache.history.file import HistoryFile
from cache.history.reader import revision_in, runs_in
from cache.history.rows import BROKEN_ROW, digest_of
from cache.records import ANSWERS, SAME_KEY, Environment, Measured, Measurement, Prediction
from planner.components import ModelFacts
from planner.errors import InvalidArgument
from planner.programs.files import decode, encode
from planner.programs.library import Library
from planner.request import GenerationRequest
from planner.units import GIB


def now() -> str:
    """Give the time in UTC, to the microsecond, as text that sorts by time."""
    return datetime.now(UTC).isoformat(timespec="microseconds")


def _canonical(versions: Mapping[str, str]) -> str:
    return json.dumps(dict(versions), sort_keys=True)


def _was_squeezed(run: Measurement, free_bytes: int | None) -> bool:
    measured = run.measured
    if measured.outcome == "ok" and not measured.num_alloc_retries:
        return False
    if run.environment.device_kind == "cpu":
        # Other programs share the host's memory, and may have left it since.
        return True
    # Free memory was read after our own context was made, which takes less than a GiB on every GPU.
    then = measured.free_before_bytes
    return bool(run.holders) or (free_bytes is not None and then is not None and free_bytes > then + GIB)


def _who() -> str:
    """Name the user and the process that change the history."""
    try:
        name = getpass.getuser()
    except (KeyError, OSError):
        # A container's user may have no name.
        name = f"uid {os.geteuid()}"
    return f"{name}, process {os.getpid()}"


class Audited(NamedTuple):
    """Hold a line of the audit: when, who, what was done to how many runs, and which run or file."""

    at: str
    who: str
    action: str
    runs: int
    detail: str | None


class StoppedJob(NamedTuple):
    """Hold a job that ended with the planner, and what is needed to queue it again."""

    job_id: str
    created_at: str
    request: GenerationRequest
    environment: Environment


class Imported(NamedTuple):
    """The counts of runs that came in and of runs that were there before."""

    added: int
    known: int


class Store(HistoryFile):
    """The history's rows."""

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
        run = Measurement(
            measurement_id=str(uuid.uuid4()),
            created_at=now(),
            request=request,
            environment=environment,
            measured=measured,
            holders=holders,
            predictions=predictions,
        )
        self._insert(db, [run])
        return run.measurement_id

    def _insert(self, db: Database, runs: list[Measurement]) -> None:
        # Each is hashed once: the hashes that name them take longer than the rows.
        request_ids = {run.request: run.request.request_id for run in runs}
        environment_ids = {run.environment: run.environment.environment_id for run in runs}
        kept_at = now()
        rows, stages, predictions = [], [], []
        for run in runs:
            of = {"measurement_id": run.measurement_id}
            values = asdict(run.measured)
            own_stages = [of | stage for stage in values.pop("stages")]
            told = [of | asdict(one) | {"stages": json.dumps(one.stages)} for one in run.predictions]
            row = {
                "id": run.measurement_id,
                "request_id": request_ids[run.request],
                "environment_id": environment_ids[run.environment],
                "created_at": run.created_at,
                "kept_at": kept_at,
                "origin": run.origin,
                "source": run.source,
                "holders": json.dumps(list(run.holders)),
            } | values
            rows.append(row | {"digest": digest_of(row, own_stages, told)})
            stages += own_stages
            predictions += told
        self._keep_shared(db, request_ids, environment_ids)
        for table, made in (("measurements", rows), ("stages", stages), ("predictions", predictions)):
            db.table(table).insert_all(made)

    @staticmethod
    def _keep_shared(db: Database, requests: Iterable[GenerationRequest], environments: Iterable[Environment]) -> None:
        db.table("requests").insert_all(
            ({"id": request.request_id} | request.canonical().to_dict() for request in requests), ignore=True
        )
        db.table("environments").insert_all(
            ({"id": environment.environment_id} | asdict(environment) for environment in environments), ignore=True
        )

    def import_measurements(self, measurements: Iterable[Measurement]) -> Imported:
        """Keep runs measured elsewhere, all or none, with their ids and times.

        A run that is here stays as it is.

        Raises:
            InvalidArgument: another run has the same id.
        """
        runs = [replace(run, request=run.request.canonical(), origin="imported") for run in measurements]
        with self._writing() as db:
            ids = json.dumps([run.measurement_id for run in runs])
            found = self.measurements("m.id in (select value from json_each(:ids))", {"ids": ids})
            here = {run.measurement_id: run for run in found}
            added = []
            for run in runs:
                known = here.setdefault(run.measurement_id, run)
                if known is run:
                    added.append(run)
                # Lines are compared and not runs: a line has all that a file can say, and not who measured the run.
                elif line_of(known) != line_of(run):
                    rule = "must be the id of one run, another with it is in the history or in the file"
                    raise InvalidArgument("id", rule, run.measurement_id)
            if added:
                self._insert(db, added)
            self._audit(db, "import", len(added), f"{len(runs) - len(added)} were known")
        return Imported(len(added), len(runs) - len(added))

    @staticmethod
    def _audit(db: Database, action: str, runs: int, detail: str | None = None) -> None:
        """Note a change in the transaction that makes it, so that neither is there without the other."""
        line = Audited(now(), _who(), action, runs, detail)
        db.table("audit").insert(line._asdict())

    def audit(self) -> list[Audited]:
        """List the lines of the audit, oldest first."""
        with self._connect() as db:
            rows = db.execute("select at, who, action, runs, detail from audit order by id").fetchall()
        return [Audited(*row) for row in rows]

    def add_recovered(self, measurements: Iterable[Measurement]) -> Imported:
        """Keep runs of a damaged history of our own, as they were.

        A run that is here stays as it is.
        """
        runs = {run.measurement_id: run for run in measurements}
        with self._writing() as db:
            query = "select id from measurements where id in (select value from json_each(?))"
            known = {row[0] for row in db.execute(query, [json.dumps(list(runs))])}
            added = [run for run_id, run in runs.items() if run_id not in known]
            if added:
                self._insert(db, added)
            self._audit(db, "recover", len(added), f"{len(known)} were known")
        return Imported(len(added), len(known))

    def measurements(self, where: str = "1", arguments: Mapping[str, Any] | None = None) -> list[Measurement]:
        """List the runs that meet a condition, newest first; see `runs_in`."""
        with self._connect() as db:
            return list(runs_in(db.conn, where, arguments))

    def timed_runs(self, environment: Environment, most: int = 50) -> tuple[list[Measurement], dict[str, float]]:
        """List the newest runs of this planner on the same GPU that have times, and the seconds of their jobs.

        The seconds are from the job's begin in the queue to its end, by the run's id; a run without a job has none.
        """
        newest = """m.id in (
            select m.id from measurements m join environments e on e.id = m.environment_id
            where m.origin = 'own' and m.outcome = 'ok' and m.seconds_per_step > 0 and m.total_seconds > 0
            and e.device_kind = :device_kind and e.card = :card and e.uuid_hash is :uuid_hash
            order by m.created_at desc limit :most)"""
        names = ("device_kind", "card", "uuid_hash")
        with self._connect() as db:
            runs = list(
                runs_in(
                    db.conn,
                    newest,
                    {name: getattr(environment, name) for name in names} | {"most": most},
                    with_predictions=False,
                    skip_broken=True,
                )
            )
            ids = json.dumps([run.measurement_id for run in runs])
            query = """select measurement_id, created_at, ended_at from jobs where ended_at is not null
                and measurement_id in (select value from json_each(?))"""
            times = db.execute(query, [ids]).fetchall()
        seconds = {
            run_id: (datetime.fromisoformat(ended) - datetime.fromisoformat(began)).total_seconds()
            for run_id, began, ended in times
        }
        return runs, seconds

    def revision(self) -> tuple[int, str]:
        """Give a value that differs once a run was kept or deleted; see `revision_in`."""
        with self._connect() as db:
            return revision_in(db.conn)

    def measurement(self, measurement_id: str) -> Measurement:
        """Find the run of this id, or of the only id that begins with it.

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
        """Remove one run with its stages and predictions.

        Requests and environments stay: others may share them.

        Raises:
            InvalidArgument: as `measurement`.
        """
        full_id = self.measurement(measurement_id).measurement_id
        with self._writing() as db:
            for table in ("stages", "predictions"):
                db.table(table).delete_where("measurement_id = ?", [full_id])
            db.execute("update jobs set measurement_id = null where measurement_id = ?", [full_id])
            db.table("measurements").delete_where("id = ?", [full_id])
            self._audit(db, "delete", 1, full_id)

    def already_measured(
        self, request: GenerationRequest, environment: Environment, free_bytes: int | None = None
    ) -> Measurement | None:
        """Find the newest run of this request under the same `SAME_KEY` whose outcome answers it again.

        A run that met the end of its GPU's memory is left out when others held memory then, or when more is free now
        (`free_bytes`). A GPU is known by its own key, wherever it was measured; a rehearsal has none, so a rehearsal
        on another machine is left out.
        """
        if environment.emulated_bytes is not None and free_bytes is not None:
            # What is free beyond the emulated capacity would help no run.
            free_bytes = min(free_bytes, environment.emulated_bytes)
        same = " and ".join(f"e.{name} is :{name}" for name in SAME_KEY)
        same += " and (m.origin = 'own' or e.uuid_hash is not null)"
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
        """Find the counts kept for these versions; None when none were made yet."""
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

    # Memory programs

    def save_program(self, library: Library) -> None:
        """Keep a library compiled here, in place of an older one for the same versions."""
        header, numbers = encode(library)
        row = {"versions": _canonical(library.versions), "header": header, "numbers": numbers, "created_at": now()}
        with self._writing() as db:
            db.table("programs").insert(row, replace=True)

    def program(self, versions: Mapping[str, str]) -> Library | None:
        """Find the library compiled here for these versions, or None.

        Raises:
            NoProgram: it was written in another format.
        """
        with self._connect() as db:
            row = next(iter(db.table("programs").rows_where("versions = ?", [_canonical(versions)])), None)
        return decode(row["header"], row["numbers"], "a program compiled here") if row else None

    # Jobs

    def add_job(self, job_id: str, request: GenerationRequest, environment: Environment, owner: str) -> None:
        """Note a job before anything else happens to it."""
        with self._writing() as db:
            self._keep_shared(db, [request], [environment])
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
        """Note that the job has its device and runs."""
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
        is_stopped: bool = False,
    ) -> str:
        """Keep the job's run and close the job, both or neither; returns the run's id.

        `is_stopped` says that it ended with the planner, so that it is one of `stopped_jobs`.
        """
        with self._writing() as db:
            measurement_id = self._insert_measurement(db, request, environment, measured, predictions, holders)
            values = {"state": measured.outcome, "ended_at": now(), "reason": measured.reason}
            values["stopped"] = 1 if is_stopped else None
            db.table("jobs").update(job_id, values | {"measurement_id": measurement_id})
        return measurement_id

    def job(self, job_id: str) -> dict[str, Any] | None:
        """Find the job's row, or None."""
        with self._connect() as db:
            return next(iter(db.table("jobs").rows_where("id = ?", [job_id])), None)

    def open_jobs(self) -> list[dict[str, Any]]:
        """List the jobs that are queued or running, in the order in which they came."""
        with self._connect() as db:
            return list(db.table("jobs").rows_where("state in ('queued', 'running')", order_by="created_at"))

    def close_orphan(self, row: Mapping[str, Any]) -> bool:
        """Close a job whose planner is gone, keep a run for it, and tell whether it was still open.

        A job that had not begun is cancelled, and one that ran is failed: its run may be what ended the planner. Both
        are among `stopped_jobs`.
        """
        with self._writing() as db:
            current = next(iter(db.table("jobs").rows_where("id = ?", [row["id"]])), None)
            if current is None or current["state"] not in ("queued", "running"):
                return False
            request = GenerationRequest.from_dict(json.loads(row["request"]))
            found = next(iter(db.table("environments").rows_where("id = ?", [row["environment_id"]])))
            if current["state"] == "queued":
                measured = Measured(outcome="cancelled", reason="the planner ended before this job began")
            else:
                measured = Measured(outcome="failed", reason="the planner ended while this job ran")
            measurement_id = self._insert_measurement(db, request, Environment.from_row(found), measured, (), ())
            values = {"state": measured.outcome, "ended_at": now(), "reason": measured.reason, "stopped": 1}
            db.table("jobs").update(row["id"], values | {"measurement_id": measurement_id})
        return True

    def stopped_jobs(self) -> list[StoppedJob]:
        """List the jobs that ended with the planner and were neither queued again nor given up, oldest first."""
        query = """select j.id job_id, j.created_at job_created_at, j.request, e.* from jobs j
            join environments e on e.id = j.environment_id where j.stopped = 1 order by j.created_at"""
        found = []
        with self._connect() as db:
            for row in db.query(query):
                # A request that a stricter rule no longer allows cannot be queued again.
                with contextlib.suppress(*BROKEN_ROW):
                    request = GenerationRequest.from_dict(json.loads(row["request"]))
                    environment = Environment.from_row(row)
                    found.append(StoppedJob(row["job_id"], row["job_created_at"], request, environment))
        return found

    def settle_stopped(self, job_ids: Iterable[str]) -> None:
        """Take these jobs off the list of `stopped_jobs`: they were queued again, or given up."""
        with self._writing() as db:
            db.execute(
                "update jobs set stopped = null where id in (select value from json_each(?))",
                [json.dumps(list(job_ids))],
            )
