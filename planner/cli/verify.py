"""The command ``verify``: run one request or many for real, and keep the peaks of each."""

import json
import sys
import tempfile
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple, Self

import click

from cache.allocations import Recording, recording_report
from cache.exchange.lines import line_of
from cache.files import checked_place, write_file
from cache.history.location import HistoryError
from cache.history.observations import gather
from cache.jobs.ending import signals_as_exit
from cache.jobs.estimate import expected_text
from cache.jobs.job import JobView
from cache.jobs.queue import Jobs
from cache.jobs.sweep import MAX_FILE_BYTES, VARIED, Entry, entries_in, grid, in_order, runnable
from cache.machine.attached import usable_card
from cache.machine.device import Device, Weights, check_folder, check_runnable
from cache.machine.versions import check_installed, installed
from cache.outcomes import exit_code_of, verdict_of
from cache.predictions import peak_error, predictions_for
from cache.programs import find
from cache.records import Measurement
from planner.answer import EXIT_CODES, SCHEMA, worst
from planner.cards.card import emulated_name
from planner.cli.arguments import GroupedCommand, json_option, request_options
from planner.cli.exchange import reading
from planner.cli.history import measurement_text, open_store, percent_text, size_text
from planner.cli.output import print_json, say
from planner.components import MODEL_ID, SD_V15, STAGE_NAMES
from planner.errors import CannotWrite, InvalidArgument
from planner.programs.files import shipped
from planner.programs.library import Library
from planner.report.text import text_table
from planner.request import GenerationRequest
from planner.units import parse_bytes

WEIGHTS: tuple[Weights, ...] = ("synthetic", "hub")
# Shells report this exit code for a command that Ctrl-C ended.
INTERRUPTED = 130


class _Progress:
    """Print job progress on stderr: a changing line on a terminal, else a line for each change.

    With `says_time` the expected time is printed first.
    """

    def __init__(self, *, says_time: bool):
        self._says_time = says_time
        self._last, self._phase, self._passed = "", "", 0
        self._live = sys.stderr.isatty()

    def __call__(self, view: JobView) -> None:
        if view.state == "queued" or view.phase is None:
            return
        if self._says_time and not self._last:
            say(expected_text(view.estimate))
        text = view.steps_text or STAGE_NAMES.get(view.phase, view.phase)
        if view.detail:
            text += f": {view.detail.replace('_', ' ')}"
        left = f", {view.left_text}" if view.left_text else ""
        if self._live:
            sys.stderr.write(f"\r\033[K[{view.total_seconds:6.1f} s] {text} ({view.phase_seconds:.1f} s){left}")
            sys.stderr.flush()
        else:
            self._say_missed(view)
            if text != self._last:
                say(f"[{view.total_seconds:6.1f} s] {text}{left}")
        self._last, self._phase = text, view.phase

    def _say_missed(self, view: JobView) -> None:
        """Print the phases that began and ended between two polls, and the end of the last step."""
        for phase, seconds in view.phases[self._passed :]:
            if phase == self._phase == "unet":
                say(f"[{view.total_seconds:6.1f} s] UNet: all steps finished in {seconds:.1f} s")
            elif phase != self._phase:
                say(f"[{view.total_seconds:6.1f} s] {STAGE_NAMES.get(phase, phase)}: {seconds:.2f} s")
            self._phase = ""
        self._passed = len(view.phases)

    def end(self) -> None:
        if self._live and self._last:
            sys.stderr.write("\r\033[K")


class _Asked(NamedTuple):
    """Hold the values of the options of ``verify``, beside the request."""

    weights: Weights
    model_dir: str | None
    device: Device
    workspaces: str | None
    is_forced: bool
    as_json: bool


class _Ran(NamedTuple):
    measurement: Measurement
    cached: bool


class _Bench:
    """Hold the queue, the device, and the programs and runs that predictions are made from."""

    def __init__(self, asked: _Asked):
        self.asked = asked
        self.store = open_store()
        self.library = find().library
        # The evidence is read before the first of these runs, so that none of them is predicted from another.
        self.evidence = gather(self.library).evidence
        self.jobs = Jobs(self.store)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        # Closing the queue cancels a job that runs.
        self.jobs.close()

    def submit(self, request: GenerationRequest, device: Device, record_to: Path | None = None) -> str:
        """Queue the request with its predictions, and return the job id.

        `record_to` is as for `Jobs.submit`.
        """
        facts = self.store.model_facts(MODEL_ID, installed()) or SD_V15
        return self.jobs.submit(
            request,
            device,
            weights=self.asked.weights,
            model_dir=self.asked.model_dir,
            predict=lambda: predictions_for(request, device, facts, library=self.library, evidence=self.evidence),
            force=self.asked.is_forced,
            record_to=record_to,
        )

    def wait(self, job_id: str, *, says_time: bool) -> JobView:
        """Wait until the job has ended and return its state; print its progress on stderr."""
        progress = _Progress(says_time=says_time)
        try:
            return self.jobs.wait(job_id, progress)
        finally:
            progress.end()

    def kept(self, view: JobView) -> _Ran:
        """Return the run of a job that ended.

        Raises:
            HistoryError: the history could not keep it; the run was printed on stderr as text, and on stdout as a line
                that can be imported.
        """
        if view.measurement_id is not None:
            return _Ran(self.store.measurement(view.measurement_id), view.state == "cached")
        if view.unkept is None:
            raise HistoryError(f"{view.reason} - see 'python -m planner doctor'")
        # A run may take an hour, so it is printed even if it could not be kept, and can be imported later.
        say(f"not kept:\n{measurement_text(view.unkept)}")
        print(line_of(view.unkept))
        way = "the line on stdout is the run; 'python -m planner history import FILE' reads it"
        raise HistoryError(f"{view.reason}; {way}")


_EXAMPLES = """\b
Examples:
  will-it-fit verify --device cpu --width 256 --height 256 --steps 2
  will-it-fit verify --width 1024 --height 1024 --capacity 16GiB
  will-it-fit verify --sweep grid --steps 5

\b
Exit codes: 0 ran to the end, 11 with allocator retries, 10 out of memory,
12 failed or cancelled, 130 a stopped sweep.
"""


@click.command("verify", cls=GroupedCommand, epilog=_EXAMPLES)
@request_options
@click.option(
    "--weights", metavar="|".join(WEIGHTS), help=f"hub downloads the pinned revision. [default: {WEIGHTS[0]}]"
)
@click.option("--model-dir", metavar="DIR", help="Real weights from a local folder, safetensors only.")
@click.option(
    "--device",
    metavar="N|UUID|cpu",
    help="An attached GPU, by default the one with most free memory; cpu rehearses the path without a GPU.",
)
@click.option(
    "--capacity",
    metavar="SIZE",
    help="Run as if the GPU had only so much memory, such as 16GiB, its CUDA context included. That emulates the "
    "capacity of a smaller GPU, not its kernels. By default the whole GPU.",
)
@click.option(
    "--force",
    "is_forced",
    is_flag=True,
    help="Measure again even if the answer is known, and replace FILE of --workspaces.",
)
@click.option(
    "--workspaces",
    metavar="FILE",
    help="Measure, and write a comparison of the allocator's history with the dry run as JSON: the workspace of each "
    "convolution beside the predicted one, and each allocation that only one of the two has. Needs a GPU.",
)
@click.option(
    "--sweep",
    metavar="FILE|grid",
    help="Run many requests: a JSON array of objects, each with its differences from this request (- reads stdin), "
    "or the built-in grid of 100. The same command goes on where it was stopped. Suggested: --steps 5; more steps take "
    "longer and do not change the peaks.",
)
@json_option
def verify_command(
    request: GenerationRequest,
    weights: str | None,
    model_dir: str | None,
    device: str | None,
    capacity: str | None,
    workspaces: str | None,
    sweep: str | None,
    is_forced: bool,
    as_json: bool,
) -> int:
    """Run the request for real and keep the peaks, or answer from the history.

    With --sweep, run many requests.
    """
    # Without the libraries no device helps, so they are checked first.
    check_installed()
    asked = _Asked(
        weights=_weights_from(weights, model_dir),
        model_dir=model_dir,
        device=Device(
            None if device == "cpu" else usable_card(device),
            None if capacity is None else parse_bytes("capacity", capacity),
        ),
        workspaces=workspaces,
        is_forced=is_forced,
        as_json=as_json,
    )
    if workspaces is not None:
        _check_recordable(workspaces, asked.device, is_sweep=sweep is not None, is_forced=is_forced)
    with signals_as_exit():
        return _verify_one(asked, request) if sweep is None else _sweep(asked, request, sweep)


def _verify_one(asked: _Asked, request: GenerationRequest) -> int:
    check_runnable(request, asked.device, asked.model_dir, asked.weights)
    with _Bench(asked) as bench, tempfile.TemporaryDirectory() as folder:
        record_to = Path(folder) / "recording.json" if asked.workspaces else None
        job_id = bench.submit(request, asked.device, record_to)
        try:
            view = bench.wait(job_id, says_time=True)
        except KeyboardInterrupt:
            bench.jobs.cancel(job_id)
            view = bench.jobs.wait(job_id)
        measurement, cached = bench.kept(view)
        if asked.workspaces and record_to:
            _write_workspaces(asked.workspaces, record_to, measurement, bench.library, is_forced=asked.is_forced)
    if cached:
        say(f"measured {measurement.created_at[:16]} UTC under the same key; --force measures again")
    if asked.as_json:
        print_json({"schema": SCHEMA, "cached": cached, "measurement": measurement.to_dict()})
    else:
        print(measurement_text(measurement))
    return exit_code_of(measurement)


def _check_recordable(workspaces: str, device: Device, *, is_sweep: bool, is_forced: bool) -> None:
    """Check before the run that a file of workspaces can be written after it."""
    if device.card is None:
        rule = "needs a GPU: on the CPU no kernel's workspace comes from an allocator with a history"
        raise InvalidArgument("workspaces", rule, workspaces, "leave it out to rehearse")
    if is_sweep:
        rule = "must not be given with --sweep: it is for one request"
        raise InvalidArgument("workspaces", rule, workspaces, "'make gpu-check' records several")
    checked_place(workspaces, "workspaces", is_forced=is_forced)


def _write_workspaces(
    name: str, record_to: Path, measurement: Measurement, library: Library | None, *, is_forced: bool
) -> None:
    """Write the recording of a run beside its dry run, unless the run recorded nothing."""
    if not record_to.exists():
        say(f"{name} was not written: the run recorded nothing and its outcome is {measurement.measured.outcome}")
        return
    found = recording_report(Recording.read(record_to), library or shipped(), measurement)
    report = {"schema": SCHEMA, "measurement": measurement.to_dict()} | found
    try:
        path = checked_place(name, "workspaces", is_forced=is_forced)
        write_file(path, lambda part: part.write_text(json.dumps(report, indent=1) + "\n"), is_forced=is_forced)
    except OSError as error:
        raise CannotWrite(name, error.strerror or str(error), "free space there, or name another file") from error
    say(f"{name} has the workspace of {len(found['convolutions'])} convolutions")


def _weights_from(given: str | None, model_dir: str | None) -> Weights:
    weights = given or WEIGHTS[0]
    if weights not in WEIGHTS:
        raise InvalidArgument("weights", f"must be one of {', '.join(WEIGHTS)}", weights)
    if given is not None and model_dir is not None:
        raise InvalidArgument("weights", "must not be given with --model-dir", weights, "leave one of them out")
    return weights


def _check_unvaried(base: GenerationRequest) -> None:
    """Check that no field that the grid varies has a value, which the grid would ignore."""
    plain = GenerationRequest()
    for name in VARIED:
        value = getattr(base, name)
        if value != getattr(plain, name):
            nearest = "leave it out, or name a file with the requests you mean"
            raise InvalidArgument(name, "must not be given with --sweep grid, which varies it", value, nearest)


def _entries_to_sweep(sweep: str, base: GenerationRequest, device: Device) -> list[Entry]:
    if sweep == "grid":
        _check_unvaried(base)
        return grid(base, device.emulated_bytes)
    with reading("sweep", sweep) as file:
        return entries_in(file.read(MAX_FILE_BYTES + 1), base, device.emulated_bytes)


def _sweep(asked: _Asked, base: GenerationRequest, sweep: str) -> int:
    device = asked.device
    # A folder without a model is an error, and not a reason to skip each request.
    if asked.model_dir is not None:
        check_folder(asked.model_dir)
    entries = in_order(_entries_to_sweep(sweep, base, device))
    planned, skipped = runnable(entries, device, asked.model_dir, asked.weights)
    total = len(planned) + len(skipped)
    for reason, count in Counter(f"{one.error.argument} {one.error.rule}" for one in skipped).items():
        say(f"skipped {count} of {total}: {reason}")
    ran: list[_Ran] = []
    is_stopped = False
    try:
        with _Bench(asked) as bench:
            for number, entry in enumerate(planned, 1):
                say(f"[{number}/{len(planned)}] {_described(entry)}")
                job_id = bench.submit(entry.request, entry.device(device))
                ran.append(bench.kept(bench.wait(job_id, says_time=False)))
                say(_ending(ran[-1]))
    except KeyboardInterrupt:
        is_stopped = True
    if asked.as_json:
        rows = [{"cached": one.cached, "measurement": one.measurement.to_dict()} for one in ran]
        left_out = [
            {
                "request": one.entry.request.to_dict(),
                "capacity_bytes": one.entry.capacity_bytes,
                "reason": str(one.error),
            }
            for one in skipped
        ]
        print_json({"schema": SCHEMA, "sweep": rows, "skipped": left_out})
    elif ran:
        print(_sweep_table(ran))
    if is_stopped:
        say(f"stopped after {len(ran)} of {len(planned)}; the same command goes on from there")
        return INTERRUPTED
    return EXIT_CODES[worst(verdict_of(one.measurement) for one in ran)]


def _described(entry: Entry) -> str:
    return emulated_name(entry.request.describe(), entry.capacity_bytes)


def _ending(one: _Ran) -> str:
    measured = one.measurement.measured
    known = " (measured before)" if one.cached else ""
    why = (measured.reason or "").partition("\n")[0][:200]
    return f"{measured.outcome}{known}: {why or f'{size_text(measured.peak_allocated_bytes)} allocated'}"


def _sweep_table(ran: Sequence[_Ran]) -> str:
    rows = []
    for measurement, cached in ran:
        measured = measurement.measured
        errors = {one.basis: peak_error(measurement, one) for one in measurement.predictions}
        rows.append(
            (
                _described(Entry(measurement.request, measurement.environment.emulated_bytes)),
                measured.outcome,
                size_text(measured.peak_allocated_bytes),
                size_text(measured.peak_reserved_bytes),
                percent_text(errors.get("dry-run")),
                "-" if measured.num_alloc_retries is None else str(measured.num_alloc_retries),
                "yes" if cached else "no",
            )
        )
    header = ("request", "outcome", "allocated", "reserved", "dry run off by", "retries", "cached")
    return text_table(header, rows, right=(2, 3, 4, 5))
