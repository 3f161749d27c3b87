"""Run the experiments through the queue and the worker of ``verify``, and write down each outcome."""

import contextlib
import os
import platform
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec

import psutil

from cache.gpu_check import plan
from cache.gpu_check.files import Folder
from cache.gpu_check.plan import Experiment
from cache.gpu_check.report import Report, Tests
from cache.history.store import Store
from cache.jobs.job import JobView
from cache.jobs.queue import Jobs
from cache.machine.device import Device, Weights, check_runnable, environment_of
from cache.machine.versions import installed, torch_cuda
from cache.predictions import predictions_for
from cache.programs import ROOT, find, wanted_versions
from cache.records import Measurement, Prediction
from planner.answer import Verdict
from planner.errors import InvalidArgument, PlannerError
from planner.programs.files import shipped
from planner.programs.library import Library

# The versions of these packages are in environment.json if they are installed.
_PACKAGES = ("numpy", "tokenizers", "safetensors", "huggingface-hub", "pillow", "nvidia-ml-py", "pytest")
COMPILE = (sys.executable, "-m", "planner", "compile")
# So much time is kept for writing the summary and for ending a worker.
_CLOSING_SECONDS = 2.0
# Estimates are corrected by the real durations from so many experiments on.
_ENOUGH_TO_CORRECT = 2
_POLL_SECONDS = 0.2


class OutOfTime(Exception):
    """The time budget is used up."""


@dataclass
class Check:
    """Check one device, with results in one folder."""

    folder: Folder
    device: Device
    seconds: float
    weights: Weights = "synthetic"
    limit: int | None = None
    say: Callable[[str], None] = print
    _began: float = field(default_factory=time.monotonic)

    def __post_init__(self):
        self.store = Store(self.folder.history)
        self.card = self.device.as_card()
        self.report = Report(self.folder, self.device, self.card)
        self._compile: subprocess.Popen[bytes] | None = None
        self._library: Library | None = None
        self._estimated = self._took = 0.0
        self._ran = 0

    @property
    def remaining(self) -> float:
        """Return the seconds left of the budget, less those that closing takes."""
        return self.seconds - _CLOSING_SECONDS - (time.monotonic() - self._began)

    def run(self) -> None:
        """Run all that the time allows, except experiments that are in the folder already."""
        name = self.device.card.name if self.device.card else "the CPU, a rehearsal"
        self._tell(f"gpu-check of {name} into {self.folder.path}")
        self._write_environment()
        self._look_for_programs()
        try:
            with contextlib.closing(Jobs(self.store)) as jobs:
                # Opening the queue has closed a run that was cut off before as failed.
                self._write()
                self._run_all(jobs)
            self._run_tests()
            self._await_programs()
        except OutOfTime:
            self._tell("the time is used up")
        finally:
            self._end_compile()
            self.report.seconds = time.monotonic() - self._began
            self._write()
        self._tell(f"summary: {self.folder.path / 'summary.md'}")

    # These methods run experiments and tests.

    def _run_all(self, jobs: Jobs) -> None:
        planned = self._planned()
        self.report.reached_end = False
        waiting = list(planned)
        try:
            for one, estimate in planned:
                if self.limit is not None and self._ran >= self.limit:
                    self.report.not_reached_because = f"--limit {self.limit} was reached"
                    return
                if not self._fits(estimate) and self._ran:
                    # A shorter experiment may still fit.
                    continue
                self._try_one(jobs, one, estimate)
                waiting.remove((one, estimate))
            self.report.reached_end = not waiting
        finally:
            self.report.not_reached = [one for one, _ in waiting]

    def _fits(self, estimate: float) -> bool:
        return estimate * self._correction <= self.remaining

    @property
    def _correction(self) -> float:
        """Return the ratio of seconds taken to seconds estimated, over the experiments so far."""
        if self._ran < _ENOUGH_TO_CORRECT:
            return 1.0
        return min(5.0, max(0.2, self._took / self._estimated))

    def _planned(self) -> list[tuple[Experiment, float]]:
        """Order the experiments to run, with estimated seconds; those that failed before come last."""
        candidates, cannot = [], []
        for one in plan.candidates(self.device):
            try:
                check_runnable(one.request, plan.with_capacity(self.device, one), weights=self.weights)
                candidates.append(one)
            except InvalidArgument as error:
                cannot.append((one, f"{error.argument} {error.rule}"))
        self.report.cannot = cannot
        library = self._library or shipped()
        verdicts: dict[Experiment, Verdict] = {one: plan.verdict_on(one, self.card, library) for one in candidates}
        ordered = plan.experiments(candidates, verdicts)
        seconds = list(plan.seconds_with_starts(ordered, [verdicts[one] for one in ordered], self.card))
        self.report.estimated_seconds = sum(seconds)
        chosen = [taken for one, taken in zip(ordered, seconds, strict=True) if plan.is_chosen(one)]
        self.report.estimated_chosen_seconds = sum(chosen)
        failed = {
            (run.request.request_id, run.environment.emulated_bytes)
            for run in self.store.measurements("m.outcome = 'failed'")
        }
        left = [pair for pair in zip(ordered, seconds, strict=True) if not self._is_known(pair[0])]
        self._tell(f"{len(ordered)} experiments, {len(ordered) - len(left)} of them known from before")
        return sorted(left, key=lambda pair: (pair[0].request.request_id, pair[0].capacity_bytes) in failed)

    def _is_known(self, one: Experiment) -> bool:
        device = plan.with_capacity(self.device, one)
        environment = environment_of(device, self.weights, request=one.request)
        known = self.store.already_measured(one.request, environment, device.free_bytes)
        return known is not None and (not one.records or self.folder.has_recording(known.measurement_id))

    def _try_one(self, jobs: Jobs, one: Experiment, estimate: float) -> None:
        """Run the experiment; report an error of our own in it, so that the others still run."""
        try:
            self._run_one(jobs, one, estimate)
        except (OutOfTime, PlannerError):
            # Without a place for results the other experiments would be lost as well.
            raise
        except Exception as error:
            self._ran += 1
            self.report.crashed.append((one, f"{type(error).__name__}: {error}"[:300]))
            self._tell(f"broke off: {plan.name_of(one)}\n{traceback.format_exc()}")

    def _run_one(self, jobs: Jobs, one: Experiment, estimate: float) -> None:
        device = plan.with_capacity(self.device, one)
        name = plan.name_of(one)
        self._tell(f"begin: {name} ({one.why}), about {estimate * self._correction:.0f} s, {self.remaining:.0f} s left")
        self._look_for_programs()
        library = self._library

        def predict() -> tuple[Prediction, ...]:
            # Predictions by programs of other versions would be kept with the run as if they were for these.
            if library is None:
                return ()
            return predictions_for(one.request, device, own_pid=jobs.worker_pid, library=library)

        self.folder.part.unlink(missing_ok=True)
        began = time.monotonic()
        job_id = jobs.submit(
            one.request,
            device,
            weights=self.weights,
            predict=predict,
            force=True,
            record_to=self.folder.part if one.records else None,
        )
        try:
            view = jobs.wait(job_id, self._watch)
        except OutOfTime:
            jobs.cancel(job_id)
            jobs.wait(job_id)
            self._tell(f"cut off after {time.monotonic() - began:.1f} s: {name}")
            raise
        took = time.monotonic() - began
        self._ran += 1
        self._took += took
        self._estimated += estimate
        self._note(one, view)
        reason = (view.reason or "").partition("\n")[0][:200]
        self._tell(f"{view.state} after {took:.1f} s: {name}{f' - {reason}' if reason else ''}")
        self._write()

    def _watch(self, _view: JobView) -> None:
        if self.remaining <= 0:
            raise OutOfTime

    def _note(self, one: Experiment, view: JobView) -> None:
        if view.unkept is not None:
            # The summary shows the run although the history refused it, and says so.
            self.report.unkept.append(view.unkept)
            self._tell(f"not kept in the history: {view.reason}")
        if one.records and view.measurement_id is not None:
            self.folder.keep_recording(view.measurement_id)

    def _run_tests(self) -> None:
        """Run tests/gpu if pytest is installed, the time allows and no limit is given."""
        lacking = [name for name in ("pytest", "pytest_timeout") if find_spec(name) is None]
        if lacking:
            self.report.tests = Tests(reason=f"not installed: {', '.join(lacking)}")
            return
        if self.folder.tests.exists():
            return
        if self.limit is not None:
            self.report.tests = Tests(reason="not run with --limit")
            return
        if not self._fits(plan.TESTS_SECONDS if self.card else 0.0):
            self.report.tests = Tests(reason="not reached in the time")
            return
        self._tell("begin: tests/gpu")
        part = self.folder.tests.with_suffix(".part")
        command = [sys.executable, "-m", "pytest", "tests/gpu", "-q", "-p", "no:cacheprovider", f"--junitxml={part}"]
        child = subprocess.Popen(
            command,
            cwd=ROOT,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        try:
            self._await(child)
            if part.exists():
                os.replace(part, self.folder.tests)
                self._tell(f"tests/gpu: {self.report.tests_found().text()}")
        finally:
            _end(child)
            part.unlink(missing_ok=True)

    def _await(self, child: subprocess.Popen[bytes]) -> None:
        while child.poll() is None:
            if self.remaining <= 0:
                raise OutOfTime
            time.sleep(_POLL_SECONDS)

    # These methods find or compile programs for the installed versions.

    def _look_for_programs(self) -> None:
        """Find the programs of the installed versions, or compile them beside the measuring."""
        if self._library is not None or (self._compile and self._compile.poll() is None):
            return
        found = find()
        if found.notice is None and found.library is not None:
            self._library = self.report.library = found.library
            return
        if self._compile is not None:
            if self.report.no_programs is None or "compile" in self.report.no_programs:
                self.report.no_programs = f"the installed versions could not be compiled: {found.notice}"
            return
        wanted = ", ".join(f"{name} {number}" for name, number in wanted_versions().items())
        self.report.no_programs = f"a compile for {wanted} had not ended"
        self._tell(f"compiling programs for {wanted} beside the measuring; until then runs are not compared")
        self._compile = subprocess.Popen(
            COMPILE,
            cwd=ROOT,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )

    def _await_programs(self) -> None:
        if self._compile is not None and self._library is None:
            self._tell("waiting for the compile")
            self._await(self._compile)
            self._look_for_programs()

    def _end_compile(self) -> None:
        if self._compile is not None:
            _end(self._compile)

    # These methods write the files.

    def _write(self) -> None:
        runs = [*_telling(self.store.measurements()[::-1]), *self.report.unkept]
        self.folder.write_runs(runs)
        self.report.write(runs)
        self._write_environment(runs)

    def _write_environment(self, runs: Sequence[Measurement] = ()) -> None:
        card = self.device.card
        ran = [asdict(run.environment) for run in runs if run.environment.cudnn or not card]
        self.folder.write_json(
            "environment.json",
            {
                "device": self.device.kind,
                "card": None
                if card is None
                else {
                    "name": card.name,
                    "uuid_hash": card.uuid_hash,
                    "total_bytes": card.total_bytes,
                    "free_bytes": card.free_bytes,
                    "compute_capability": ".".join(map(str, card.compute_capability)),
                    "driver": card.driver,
                    "mig": card.mig,
                    "holders": [asdict(holder) for holder in card.holders],
                },
                "versions": installed(),
                "torch_cuda": torch_cuda(),
                "programs_for": dict(shipped().versions),
                "packages": dict(_versions_of(_PACKAGES)),
                "machine": {
                    "system": platform.platform(),
                    "cores": os.cpu_count(),
                    "memory_bytes": psutil.virtual_memory().total,
                },
                # A run also knows what torch reports once it is loaded: cuDNN, total memory, attention.
                "as_run": ran[-1] if ran else None,
            },
        )

    def _tell(self, text: str) -> None:
        self.folder.log(text)
        self.say(text)


def _versions_of(names: Sequence[str]) -> Iterator[tuple[str, str]]:
    for name in names:
        with contextlib.suppress(PackageNotFoundError):
            yield name, version(name)


def _telling(runs: Sequence[Measurement]) -> list[Measurement]:
    """Leave out cancelled runs, and failures of requests that another run finished."""

    def key(run: Measurement) -> tuple[str, int | None]:
        return run.request.request_id, run.environment.emulated_bytes

    ended = {key(run) for run in runs if run.measured.outcome in ("ok", "out-of-memory")}
    return [
        run
        for run in runs
        if run.measured.outcome in ("ok", "out-of-memory")
        or (run.measured.outcome == "failed" and key(run) not in ended)
    ]


def _end(child: subprocess.Popen[bytes]) -> None:
    """End a child of ours and what it started; it leads a session of its own."""
    if child.poll() is None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(child.pid, signal.SIGKILL)
    child.wait()
