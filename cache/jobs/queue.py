"""A queue of measuring jobs, and the worker that serves them.

One thread runs one job at a time, and never uses Streamlit. The model stays resident in the worker between jobs. The
queue ends the worker after an idle time, an out-of-memory, a cancel or a failure, and on request.
"""

import contextlib
import logging
import os
import threading
import time
import uuid
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from cache import logs
from cache.history.location import HistoryError, default_path
from cache.history.store import StoppedJob, Store, now
from cache.jobs import ending
from cache.jobs.estimate import Estimate, estimate
from cache.jobs.job import ENDED, Job, JobView
from cache.jobs.limits import QueueFull
from cache.jobs.lock import device_lock
from cache.jobs.owner import Owner
from cache.jobs.worker_process import Cancelled, HostMemoryRanOut, WorkerFailed, WorkerProcess, real_worker
from cache.machine.attached import AttachedCard
from cache.machine.attached import cards as attached_cards
from cache.machine.device import Device, Weights, allocator_environment, check_runnable, environment_of
from cache.machine.versions import installed
from cache.records import Measured, Measurement, Prediction
from cache.settings import MAX_SECONDS, MAX_WAITING, MAX_WAITING_EACH
from planner.components import MODEL_ID
from planner.errors import NoGpu, PlannerError
from planner.request import GenerationRequest

# No single kernel or weight file should take so long, so a worker that is silent for longer hangs.
SILENCE_S = 900.0
IDLE_S = 180.0
# So many jobs stay in memory for the page that started them; the history keeps all.
REMEMBERED = 50


# The reason of each job that was open when its planner was asked to end.
STOPPED = "stopped with the planner"

_log = logs.get("jobs")


def close_orphans(store: Store) -> None:
    """Close jobs whose planner has ended, and end the worker that it left: a crash leaves a row as well.

    A server does so as it starts, and every queue does.
    """
    # A dead owner without an open job may have left a worker too.
    dead = {name for name in Owner.names(store.path) if not Owner.is_alive(store.path, name)}
    for row in store.open_jobs():
        is_dead = row["owner"] in dead or not Owner.is_alive(store.path, row["owner"])
        if is_dead and store.close_orphan(row):
            _log.event("job-closed", job=row["id"], why="its planner has ended")


def tidy() -> None:
    """Close what dead planners left in the history, if there is one; a server does so as it starts.

    A history that cannot be used is noted in the log: pages say it to whoever opens them.
    """
    logs.setup()
    try:
        if default_path().exists():
            close_orphans(Store())
    except PlannerError as error:
        _log.event("history-refused", level=logging.WARNING, why=str(error))


class Jobs:
    """Queue jobs and run them; make one per process, and `close` it to end the worker."""

    def __init__(
        self,
        store: Store,
        *,
        worker_command: Callable[[str], Sequence[str]] = real_worker,
        silence_s: float = SILENCE_S,
        idle_s: float = IDLE_S,
        limit_s: float | None = None,
        on_unkept: Callable[[Measurement, str], None] | None = None,
    ):
        """Close orphaned jobs, and start the thread; `cache.jobs.ending.close_all` closes the queue.

        `limit_s` is the longest that a run may take, by default ``PLANNER_MAX_SECONDS``.
        `on_unkept` is called with each run that the history could not keep, and the reason.
        """
        self.store = store
        self._worker_command, self._silence_s, self._idle_s = worker_command, silence_s, idle_s
        self._on_unkept, self._limit_s = on_unkept, limit_s
        self._jobs: OrderedDict[str, Job] = OrderedDict()
        self._changed = threading.Condition()
        self._worker: WorkerProcess | None = None
        self._resident: tuple[Any, ...] | None = None
        self._closing = False
        logs.setup()
        # The claim lasts as long as this process, so that others know when its jobs are orphans.
        self._owner = Owner.claim(store.path)
        try:
            close_orphans(store)
        except BaseException:
            self._owner.leave()
            raise
        self._thread = threading.Thread(target=self._serve, name="measuring jobs", daemon=True)
        self._thread.start()
        ending.register(self)

    # These methods are for pages and the CLI.

    def submit(
        self,
        request: GenerationRequest,
        device: Device,
        *,
        weights: Weights = "synthetic",
        model_dir: str | None = None,
        predict: Callable[[], Sequence[Prediction]] | None = None,
        force: bool = False,
        record_to: Path | None = None,
        asker: str | None = None,
    ) -> str:
        """Queue a run and return its job id.

        `asker` names who asks, such as a session: only so many runs of one asker may wait.

        A run with the same key in the history answers at once. `predict` gives the predictions that are kept with the
        run; it is not called where the history answers, since predicting takes longer. With `record_to` the request is
        measured in any case, and the file then holds its `cache.allocations.Recording`.

        Raises:
            InvalidArgument: the request cannot run on this device, or is beyond a limit that is set.
            QueueFull: as many runs wait as may.
            HistoryRefused: the history cannot note the job, so it could not keep its run either.
        """
        check_runnable(request, device, model_dir, weights)
        # The worker runs in another folder, so a relative path would not be found.
        model_dir = str(Path(model_dir).resolve()) if model_dir else None
        job = Job(
            job_id=str(uuid.uuid4()),
            request=request,
            device=device,
            environment=environment_of(device, weights, model_dir, request),
            weights="local" if model_dir else weights,
            model_dir=model_dir,
            record_to=str(record_to.resolve()) if record_to else None,
            asker=asker,
        )
        known = None if force or record_to else self.store.already_measured(request, job.environment, device.free_bytes)
        if known is None:
            # Predicting takes a while, which a refused request must not cost.
            with self._changed:
                if self._open_job_like(job) is None:
                    self._check_room(asker)
        if known is None and predict is not None:
            job.predictions = tuple(predict())
        if known is None:
            # The run matters more than its estimate.
            with contextlib.suppress(HistoryError):
                job.estimate = self._estimate_of(job)
        if known:
            job.state, job.measurement_id, job.started = "cached", known.measurement_id, time.monotonic()
            job.ended_at = job.started
        with self._changed:
            if self._closing:
                raise PlannerError("this queue was closed - reload the page and start again")
            alike = self._open_job_like(job)
            if alike:
                # A second press of the button joins the run that is under way.
                return alike.job_id
            if known is None:
                self._check_room(asker)
                self.store.add_job(job.job_id, request, job.environment, self._owner.name)
            self._jobs[job.job_id] = job
            _log.event(
                "job-cached" if known else "job-queued",
                job=job.job_id,
                task=request.task,
                width=request.effective_width,
                height=request.effective_height,
                batch=request.batch,
                steps=request.steps,
                device=device.key,
                weights=job.weights,
            )
            while len(self._jobs) > REMEMBERED and next(iter(self._jobs.values())).state in ENDED:
                self._jobs.popitem(last=False)
            self._changed.notify_all()
        return job.job_id

    def queue_again(
        self,
        stopped: StoppedJob,
        *,
        predict: Callable[[GenerationRequest, Device], Sequence[Prediction]] | None = None,
        asker: str | None = None,
    ) -> str:
        """Queue a job again that ended with the planner, and return the new job's id.

        `predict` and `asker` are as for `submit`; `predict` is called with the request and its device.

        Raises:
            PlannerError: its GPU is not here, its weights are in a folder that nobody named, or `submit` refuses it.
        """
        environment = stopped.environment
        weights = environment.weights.partition(":")[0]
        if weights == "local":
            raise PlannerError("the folder of its weights is not known any more - run 'verify --model-dir' again")
        card = None
        if environment.device_kind == "cuda":
            card = next((one for one in attached_cards() if one.uuid_hash == environment.uuid_hash), None)
            if card is None:
                raise PlannerError(f"its GPU, {environment.card}, is not here - attach it, or give the run up")
        device = Device(card, environment.emulated_bytes)
        kept: Weights = "hub" if weights == "hub" else "synthetic"
        job_id = self.submit(
            stopped.request,
            device,
            weights=kept,
            predict=(lambda: predict(stopped.request, device)) if predict else None,
            asker=asker,
        )
        self.store.settle_stopped([stopped.job_id])
        return job_id

    def estimate(self, request: GenerationRequest, device: Device, weights: Weights = "synthetic") -> Estimate | None:
        """Estimate how long a run would take, or return None if no run here tells it.

        Raises:
            HistoryError: the history cannot be read.
        """
        environment = environment_of(device, weights, request=request)
        return self._estimate_of(Job("", request, device, environment, weights, None))

    def is_measured(self, request: GenerationRequest, device: Device, weights: Weights = "synthetic") -> bool:
        """Tell whether the history answers this request without a new run.

        Raises:
            HistoryError: the history cannot be read.
        """
        environment = environment_of(device, weights, request=request)
        return self.store.already_measured(request, environment, device.free_bytes) is not None

    def _estimate_of(self, job: Job) -> Estimate | None:
        runs, open_s = self.store.timed_runs(job.environment)
        with self._changed:
            is_resident = self.worker_pid is not None and self._resident == job.resident_key()
        return estimate(job.request, job.environment, runs, open_s, is_resident=is_resident)

    def _check_room(self, asker: str | None) -> None:
        """Check that one more run may wait; the lock is held.

        Raises:
            QueueFull: as many wait as may.
        """
        waiting = [job for job in self._jobs.values() if job.state == "queued"]
        own = sum(job.asker == asker for job in waiting) if asker is not None else 0
        for setting, count, is_own in ((MAX_WAITING_EACH, own, True), (MAX_WAITING, len(waiting), False)):
            if count >= setting.value:
                _log.event("job-refused", why="the queue is full", limit=setting.value, setting=setting.name)
                raise QueueFull(setting.value, setting.name, is_own=is_own)

    def _open_job_like(self, job: Job) -> Job | None:
        def asks(one: Job) -> tuple[Any, ...]:
            return one.request, one.device.key, one.device.emulated_bytes, one.weights, one.model_dir, one.record_to

        still_open = (
            one for one in self._jobs.values() if one.state in ("queued", "running") and not one.cancelled.is_set()
        )
        return next((one for one in still_open if asks(one) == asks(job)), None)

    def view(self, job_id: str) -> JobView | None:
        """Return the state of the job, or None if this process does not know it."""
        with self._changed:
            job = self._jobs.get(job_id)
            if job is None:
                return None
            waiting = [other.job_id for other in self._jobs.values() if other.state in ("queued", "running")]
            ahead = waiting.index(job_id) if job_id in waiting else 0
            return job.view(ahead, time.monotonic())

    def cancel(self, job_id: str) -> None:
        """Cancel a queued or running job in any phase; do nothing to a job that has ended."""
        with self._changed:
            job = self._jobs.get(job_id)
            if job is None:
                return
            job.cancelled.set()
            waits = job.state == "queued"
            if waits:
                # It leaves the queue at once, since the job ahead may take an hour.
                job.state, job.started = "running", time.monotonic()
        if waits:
            self._finish(job, Measured(outcome="cancelled", reason="cancelled"), ())

    def wait(self, job_id: str, on_change: Callable[[JobView], None] | None = None, poll_s: float = 0.1) -> JobView:
        """Wait until the job has ended and return its state; call `on_change` at each poll.

        Raises:
            KeyError: this process does not know the job.
        """
        while True:
            view = self.view(job_id)
            if view is None:
                raise KeyError(job_id)
            if on_change:
                on_change(view)
            if view.ended:
                return view
            time.sleep(poll_s)

    def active(self) -> list[JobView]:
        """List the queued and running jobs in order."""
        with self._changed:
            ids = [job.job_id for job in self._jobs.values() if job.state in ("queued", "running")]
        return [view for view in map(self.view, ids) if view is not None]

    @property
    def worker_pid(self) -> int | None:
        """Return the id of the process that holds a resident model now, or None."""
        worker = self._worker
        return worker.pid if worker and worker.alive else None

    def release(self) -> bool:
        """End an idle worker and so free its device; return False if a job is running on it."""
        with self._changed:
            if any(job.state == "running" for job in self._jobs.values()):
                return False
        self._end_worker()
        return True

    def close(self) -> None:
        """Close all jobs as stopped with the planner, and end the worker and the thread.

        A second call does nothing.
        """
        with self._changed:
            if self._closing:
                return
            self._closing = True
            waiting = [job for job in self._jobs.values() if job.state == "queued"]
            for job in waiting:
                job.state, job.started = "running", time.monotonic()
            for job in self._jobs.values():
                job.cancelled.set()
            self._changed.notify_all()
        for job in waiting:
            self._finish(job, Measured(outcome="cancelled", reason=STOPPED), ())
        self._thread.join(timeout=30)
        self._owner.leave()
        _log.event("queue-closed", stopped=len(waiting))

    # These methods run in the thread.

    def _serve(self) -> None:
        while True:
            with self._changed:
                job = self._next()
                if job:
                    job.state, job.started = "running", time.monotonic()
                elif not self._closing:
                    woken = self._changed.wait(timeout=self._idle_s if self._worker else None)
            if job:
                self._finish(job, *self._measure(job))
            elif self._closing or not woken:
                self._end_worker()
                if self._closing:
                    return

    def _next(self) -> Job | None:
        return next((job for job in self._jobs.values() if job.state == "queued"), None)

    def _measure(self, job: Job) -> tuple[Measured, tuple[dict[str, Any], ...]]:
        holders: tuple[dict[str, Any], ...] = ()

        def waiting() -> None:
            self._on_progress(job, {"phase": "waiting", "detail": "another measurement is on this device"})

        try:
            self.store.start_job(job.job_id)
            _log.event("job-started", job=job.job_id)
            with device_lock(job.device, waiting, job.cancelled):
                self._on_progress(job, {"phase": "starting"})
                worker = self._worker_for(job)
                card = self._card_now(job.device)
                holders = self._holders(card, worker.pid)
                measured = self._outcome_of(job, worker)
                if measured.outcome == "out-of-memory" and measured.free_before_bytes is None and card:
                    # A worker without room for itself cannot say how much was free, and such a run has no other fact.
                    measured = replace(measured, free_before_bytes=card.free_bytes)
                # After a retry cuDNN remembers the smaller plans that it fell back to, and would use them again in the
                # next run.
                if measured.outcome != "ok" or measured.num_alloc_retries:
                    self._end_worker()
        except Cancelled:
            measured = self._cancelled(job)
        except Exception as error:
            # A bug of ours must not end the queue: it becomes a failed run, which the user sees.
            self._end_worker()
            reason = str(error) if isinstance(error, PlannerError) else f"{type(error).__name__}: {error}"
            measured = Measured(outcome="failed", reason=reason[:2000], ended_in=job.phase)
        return measured, holders

    def _outcome_of(self, job: Job, worker: WorkerProcess) -> Measured:
        order = {
            "request": job.request.to_dict(),
            "weights": job.weights,
            "model_dir": job.model_dir,
            "emulated_bytes": job.device.emulated_bytes,
            "record_to": job.record_to,
        }

        def on_message(message: dict[str, Any]) -> None:
            self._on_message(job, message)

        try:
            return worker.run(order, on_message, job.cancelled, self._silence_s, self._limit_s or MAX_SECONDS.value)
        except Cancelled:
            return self._cancelled(job)
        except HostMemoryRanOut as error:
            # On a GPU the host's memory says nothing of the GPU's.
            outcome = "out-of-memory" if job.device.card is None else "failed"
            return Measured(outcome=outcome, reason=str(error), ended_in=job.phase)
        except WorkerFailed as error:
            return Measured(outcome="failed", reason=str(error), ended_in=job.phase)

    def _cancelled(self, job: Job) -> Measured:
        reason = STOPPED if self._closing else "cancelled"
        return Measured(outcome="cancelled", reason=reason, ended_in=job.phase)

    def _worker_for(self, job: Job) -> WorkerProcess:
        if self._worker and self._worker.alive and self._resident == job.resident_key():
            return self._worker
        self._end_worker()
        environment = os.environ | allocator_environment(job.request, os.environ)
        if job.device.card:
            environment |= {"CUDA_DEVICE_ORDER": "PCI_BUS_ID", "CUDA_VISIBLE_DEVICES": job.device.card.uuid}
        worker = WorkerProcess(self._worker_command(job.device.kind), environment)
        with self._changed:
            self._worker, self._resident = worker, job.resident_key()
        self._owner.note_worker(worker.pid)
        _log.event("worker-started", job=job.job_id, worker=worker.pid)
        return worker

    @staticmethod
    def _card_now(device: Device) -> AttachedCard | None:
        """Read the job's card as the run begins, or None on the CPU and if no driver lists it."""
        try:
            return next(card for card in attached_cards() if device.card and card.uuid == device.card.uuid)
        except (NoGpu, StopIteration):
            return None

    @staticmethod
    def _holders(card: AttachedCard | None, worker_pid: int) -> tuple[dict[str, Any], ...]:
        """List the other processes on the card as the run begins."""
        return tuple(
            {"pid": holder.pid, "name": holder.name, "used_bytes": holder.used_bytes}
            for holder in (card.holders if card else ())
            if holder.pid != worker_pid
        )

    def _end_worker(self) -> None:
        with self._changed:
            worker, self._worker, self._resident = self._worker, None, None
        # The lock is not held here, since a process may take long to end and pages must not wait for it.
        if worker:
            worker.end()
            self._owner.note_worker(None)
            _log.event("worker-ended", worker=worker.pid)

    def _on_message(self, job: Job, message: dict[str, Any]) -> None:
        if message["type"] == "progress":
            self._on_progress(job, message)
        elif message["type"] == "environment":
            job.environment = replace(job.environment, **{k: v for k, v in message.items() if k != "type"})
        elif message["type"] == "facts":
            counts = {name: tuple(pair) for name, pair in message["counts"].items()}
            model = job.environment.weights if job.weights == "local" else MODEL_ID
            # The run matters more than the counts, which the next run makes again.
            with contextlib.suppress(HistoryError):
                self.store.save_model_facts(model, installed(), counts)

    def _on_progress(self, job: Job, message: dict[str, Any]) -> None:
        if message["phase"] != job.phase:
            _log.event("job-phase", job=job.job_id, phase=message["phase"])
        with self._changed:
            job.enter(message, time.monotonic())

    def _finish(self, job: Job, measured: Measured, holders: tuple[dict[str, Any], ...]) -> None:
        try:
            job.measurement_id = self.store.end_job(
                job.job_id,
                job.request,
                job.environment,
                measured,
                predictions=job.predictions,
                holders=holders,
                is_stopped=measured.outcome == "cancelled" and measured.reason == STOPPED,
            )
        except Exception as error:
            # The run has ended in any case. The run that could not be kept stays with the job, for the page that waits.
            unkept = Measurement(
                measurement_id=str(uuid.uuid4()),
                created_at=now(),
                request=job.request,
                environment=job.environment,
                measured=measured,
                holders=holders,
                predictions=job.predictions,
            )
            measured = replace(measured, reason=f"the history could not keep this run: {error}")
            job.measurement_id, job.unkept = None, unkept
            if self._on_unkept:
                self._on_unkept(unkept, str(error))
        with self._changed:
            job.close_phase(time.monotonic())
            job.measured = measured
            job.state, job.reason, job.ended_at = measured.outcome, measured.reason, time.monotonic()
            self._changed.notify_all()
        level = logging.WARNING if measured.outcome == "failed" or job.unkept else logging.INFO
        seconds = round(job.ended_at - (job.started or job.ended_at), 3)
        _log.event(
            "job-ended",
            level=level,
            job=job.job_id,
            outcome=measured.outcome,
            why=measured.reason,
            ended_in=measured.ended_in,
            run=job.measurement_id,
            seconds=seconds,
        )
