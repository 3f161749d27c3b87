"""The commands that need the history: verify, history and doctor."""

import argparse
import sys
from dataclasses import asdict

from cache.attached import usable_card
from cache.compare import compare, exit_code_of, peak_error, predictions_for
from cache.device import Device, check_runnable, environment_of
from cache.doctor import checks
from cache.history_file import HistoryError
from cache.job import JobView
from cache.jobs import Jobs
from cache.programs import compile_installed, find
from cache.records import VERSIONS, Measurement
from cache.store import Store, now
from cache.versions import installed
from planner.cli import print_json, request_from, say
from planner.components import MODEL_ID, SD_V15, STAGE_NAMES
from planner.errors import InvalidArgument, PlannerError
from planner.report import SCHEMA, text_table
from planner.units import gib

WEIGHTS = ("synthetic", "hub")


def _open_store() -> Store:
    store = Store()
    if store.moved_aside:
        say(f"the history was damaged and is now {store.moved_aside}; a new one was started")
    return store


def _size(size_bytes: int | None) -> str:
    return "-" if size_bytes is None else gib(size_bytes)


def _percent(error: float | None) -> str:
    return "-" if error is None else f"{error:+.2%}"


class _Progress:
    """Job progress on stderr: one line that changes on a terminal, one line a change elsewhere."""

    def __init__(self):
        self._last, self._phase, self._passed = "", "", 0
        self._live = sys.stderr.isatty()

    def __call__(self, view: JobView) -> None:
        if view.state == "queued" or view.phase is None:
            return
        text = STAGE_NAMES.get(view.phase, view.phase)
        if view.step is not None and view.phase == "unet":
            text += f" step {view.step}/{view.of}"
        elif view.detail:
            text += f": {view.detail}"
        if self._live:
            sys.stderr.write(f"\r\033[K[{view.total_seconds:6.1f} s] {text} ({view.phase_seconds:.1f} s)")
            sys.stderr.flush()
        else:
            self._say_missed(view)
            if text != self._last:
                say(f"[{view.total_seconds:6.1f} s] {text}")
        self._last, self._phase = text, view.phase

    def _say_missed(self, view: JobView) -> None:
        """Phases that came and went between two looks."""
        for phase, seconds in view.phases[self._passed :]:
            if phase != self._phase:
                say(f"[{view.total_seconds:6.1f} s] {STAGE_NAMES.get(phase, phase)}: {seconds:.2f} s")
            self._phase = ""
        self._passed = len(view.phases)

    def end(self) -> None:
        if self._live and self._last:
            sys.stderr.write("\r\033[K")


def verify(arguments: argparse.Namespace) -> int:
    """``verify``: measure the request on the device, or answer from the history."""
    request = request_from(arguments)
    if arguments.weights not in WEIGHTS:
        raise InvalidArgument("weights", f"must be one of {', '.join(WEIGHTS)}", arguments.weights)
    device = Device() if arguments.device == "cpu" else Device(usable_card(arguments.device))
    check_runnable(request, device, arguments.model_dir)
    store = _open_store()
    facts = store.model_facts(MODEL_ID, installed()) or SD_V15
    jobs, progress = Jobs(store), _Progress()
    try:
        job_id = jobs.submit(
            request,
            device,
            weights=arguments.weights,
            model_dir=arguments.model_dir,
            predictions=predictions_for(request, device, facts, library=find().library),
            force=arguments.force,
        )
        try:
            view = jobs.wait(job_id, progress)
        except KeyboardInterrupt:
            jobs.cancel(job_id)
            view = jobs.wait(job_id)
    finally:
        progress.end()
        jobs.close()
    if view.measurement_id is None:
        if view.measured:
            # An hour's measuring is shown even where it cannot be kept.
            environment = environment_of(device, arguments.weights, arguments.model_dir)
            lost = Measurement(
                measurement_id="not kept",
                created_at=now(),
                request=request,
                environment=environment,
                measured=view.measured,
            )
            say(measurement_text(lost))
        raise HistoryError(f"{view.reason} - see 'python -m planner doctor'")
    measurement = store.measurement(view.measurement_id)
    cached = view.state == "cached"
    if cached:
        say(f"measured {measurement.created_at[:16]} UTC under the same key; --force measures again")
    if arguments.json:
        print_json({"schema": SCHEMA, "cached": cached, "measurement": measurement.to_dict()})
    else:
        print(measurement_text(measurement))
    return exit_code_of(measurement)


def _comparison_table(measurement: Measurement) -> str:
    """Each peak as predicted by each basis, as measured, and how far off each was."""
    columns = {prediction.basis: compare(measurement, prediction) for prediction in measurement.predictions}
    header = ["peak", "measured"]
    for basis in columns:
        header += [basis, "off by"]
    rows = []
    for lines in zip(*columns.values(), strict=True):
        row = [lines[0].name, _size(lines[0].measured_bytes)]
        for line in lines:
            row += [_size(line.predicted_bytes), _percent(line.error)]
        rows.append(row)
    return text_table(header, rows, right=range(1, len(header)))


def measurement_text(measurement: Measurement) -> str:
    """One run in full, as a person would paste it into a ticket."""
    measured, environment = measurement.measured, measurement.environment
    card = environment.card + (f", driver {environment.driver}" if environment.driver else "")
    versions = [f"{name} {getattr(environment, name)}" for name in VERSIONS]
    versions += [environment.dtype, f"{environment.weights} weights"]
    facts = [
        ("run", measurement.measurement_id),
        ("when", f"{measurement.created_at[:19].replace('T', ' ')} UTC"),
        ("request", measurement.request.describe()),
        ("on", card),
        ("with", ", ".join(versions)),
        ("outcome", measured.outcome),
    ]
    if measured.reason:
        where = f" (in {STAGE_NAMES.get(measured.ended_in, measured.ended_in)})" if measured.ended_in else ""
        facts.append(("reason", f"{measured.reason}{where}"))
    if measured.total_seconds is not None and measured.seconds_per_step is not None:
        text = f"{measured.total_seconds:.2f} s without loading, {measured.seconds_per_step:.3f} s a step"
        facts.append(("time", text))
    for holder in measurement.holders:
        facts.append(("held by", f"{holder['name']} ({holder['pid']}), {_size(holder['used_bytes'])}"))
    if measured.free_before_bytes is not None:
        facts.append(("free", f"{_size(measured.free_before_bytes)} as it began"))
    if measured.peak_reserved_bytes is not None:
        text = f"context {_size(measured.context_bytes)}, {measured.num_alloc_retries} allocator retries"
        facts.append(("device", f"peak {_size(measured.peak_device_bytes)}, {text}"))
    width = max(len(name) for name, _ in facts)
    parts = ["\n".join(f"{name.ljust(width)}  {text}" for name, text in facts)]
    if measurement.predictions and measured.stages:
        parts.append(_comparison_table(measurement))
    if environment.device_kind == "cpu":
        parts.append("A rehearsal on the CPU: live tensors only, no kernels' workspace. It judges no GPU.")
    return "\n\n".join(parts)


def history_list(arguments: argparse.Namespace) -> int:
    """``history list``."""
    found = _open_store().measurements()
    if arguments.json:
        print_json({"schema": SCHEMA, "measurements": [measurement.to_dict() for measurement in found]})
        return 0
    if not found:
        say("no run was measured yet - 'python -m planner verify' measures one, '--device cpu' works anywhere")
        return 0
    versions = installed()
    rows = []
    for measurement in found:
        request, measured = measurement.request, measurement.measured
        errors = [
            f"{_percent(peak_error(measurement, prediction))} {prediction.basis}"
            for prediction in measurement.predictions
        ]
        rows.append(
            (
                measurement.measurement_id[:8],
                measurement.created_at[:16].replace("T", " "),
                f"{request.task} {request.effective_width}x{request.effective_height} x{request.batch}",
                measurement.environment.card,
                measured.outcome,
                _size(measured.peak_allocated_bytes),
                _size(measured.peak_reserved_bytes),
                ", ".join(errors) or "-",
                "stale" if measurement.is_stale(versions) else "",
            )
        )
    header = ("id", "UTC", "request", "on", "outcome", "allocated", "reserved", "off by", "")
    print(text_table(header, rows, right=(5, 6, 7)))
    return 0


def history_show(arguments: argparse.Namespace) -> int:
    """``history show``."""
    measurement = _open_store().measurement(arguments.id)
    if arguments.json:
        print_json({"schema": SCHEMA, "measurement": measurement.to_dict()})
    else:
        print(measurement_text(measurement))
    return 0


def history_delete(arguments: argparse.Namespace) -> int:
    """``history delete``: asks first, unless told not to."""
    store = _open_store()
    measurement = store.measurement(arguments.id)
    if not arguments.yes:
        if not sys.stdin.isatty():
            raise PlannerError("nobody can be asked here whether to delete the run - add --yes")
        say(measurement_text(measurement))
        say("delete this run? [y/N] ")
        if sys.stdin.readline().strip().lower() not in ("y", "yes"):
            say("kept")
            return 0
    store.delete_measurement(measurement.measurement_id)
    if arguments.json:
        print_json({"schema": SCHEMA, "deleted": measurement.measurement_id})
    else:
        say(f"deleted {measurement.measurement_id}")
    return 0


def compile_programs(arguments: argparse.Namespace) -> int:
    """``compile``: programs for the installed versions, unless there are some."""
    found = find()
    if found.library is not None and found.notice is None and not arguments.force:
        versions = ", ".join(f"{name} {version}" for name, version in found.library.versions.items())
        say(f"memory programs for {versions} are there ({found.library.source}); --force compiles them again")
        return 0
    live, last = sys.stderr.isatty(), -1

    def report(done: float, what: str) -> None:
        nonlocal last
        if live:
            sys.stderr.write(f"\r\033[K[{done:4.0%}] {what}")
            sys.stderr.flush()
        elif int(done * 10) > last:
            last = int(done * 10)
            say(f"[{done:4.0%}] {what}")

    try:
        said = compile_installed(report)
    finally:
        if live:
            sys.stderr.write("\r\033[K")
    say(said)
    return 0


def doctor(arguments: argparse.Namespace) -> int:
    """``doctor``: always 0; what it found is the answer."""
    found = checks()
    if arguments.json:
        print_json({"schema": SCHEMA, "checks": [asdict(check) for check in found]})
        return 0
    signs = {"ok": "✓", "note": "·", "problem": "✕"}
    for check in found:
        print(f"{signs[check.state]} {check.name}: {check.found}")
        if check.advice:
            print(f"    {check.advice}")
    return 0
