"""``history list``, ``show`` and ``delete`` on the terminal, and a run as text."""

import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

import click

from cache.history.reference import reference_runs
from cache.history.store import Store
from cache.machine.versions import planned_for
from cache.predictions import compare, peak_error
from cache.records import Measurement
from planner.answer import SCHEMA
from planner.cli.arguments import json_option
from planner.cli.output import print_json, say
from planner.components import LIBRARIES, STAGE_NAMES
from planner.errors import InvalidArgument, PlannerError
from planner.report.text import text_table
from planner.units import gib, short_gib, signed_percent

# A run of half a VAE alone is named by its scope.
_HALVES = {"vae.encode": "VAE encoder alone", "vae.decode": "VAE decoder alone"}


def open_store() -> Store:
    """Open the history, and say on stderr if it was damaged and set aside.

    Raises:
        HistoryError: it cannot be used.
    """
    store = Store()
    if store.moved_aside:
        say(f"the history was damaged and is now {store.moved_aside}; a new one was started")
        say(recover_hint(store.moved_aside))
    return store


def recover_hint(path: Path) -> str:
    """Write how to save the runs of a history that was set aside."""
    command = f"python -m planner history recover {shlex.quote(str(path))}"
    return f"'{command}' saves the runs that can be read; with --discard the file is no longer mentioned"


def count_text(runs: int) -> str:
    """Write a number of runs, such as ``2 runs``."""
    return f"{runs} run{'' if runs == 1 else 's'}"


def size_text(size_bytes: int | None) -> str:
    """Write a size in GiB, or a dash for None."""
    return "-" if size_bytes is None else gib(size_bytes)


def percent_text(error: float | None) -> str:
    """Write a signed share as a percentage, or a dash for None."""
    return "-" if error is None else signed_percent(error)


def _comparison_table(measurement: Measurement) -> str:
    """Write a table of each peak: measured, predicted by each basis, and the error of each."""
    columns = {prediction.basis: compare(measurement, prediction) for prediction in measurement.predictions}
    header = ["peak", "measured"]
    for basis in columns:
        header += [basis, "off by"]
    rows = []
    for lines in zip(*columns.values(), strict=True):
        row = [lines[0].name, size_text(lines[0].measured_bytes)]
        for line in lines:
            row += [size_text(line.predicted_bytes), percent_text(line.error)]
        rows.append(row)
    return text_table(header, rows, right=range(1, len(header)))


def _work_of(measurement: Measurement) -> str:
    """Describe the work of a run in one line."""
    if measurement.scope == "pipeline":
        return measurement.request.describe()
    request = measurement.request
    tiles = ", in tiles" if request.vae_tiling else ""
    size = f"{request.effective_width}×{request.effective_height}"
    return f"{_HALVES[measurement.scope]}, {size}{tiles}; its weights are not in the peaks"


def measurement_text(measurement: Measurement) -> str:
    """Write one run in full, ready to be pasted into a ticket."""
    measured, environment = measurement.measured, measurement.environment
    card = environment.card_name + (f", driver {environment.driver}" if environment.driver else "")
    versions = [f"{name} {getattr(environment, name)}" for name in LIBRARIES]
    versions += [environment.dtype, f"{environment.weights} weights"]
    facts = [
        ("run", measurement.measurement_id),
        ("when", f"{measurement.created_at[:19].replace('T', ' ')} UTC"),
        ("request", _work_of(measurement)),
        ("on", card),
        ("with", ", ".join(versions)),
        ("outcome", measured.outcome),
    ]
    if measurement.origin != "own":
        facts.insert(1, ("from", f"{measurement.origin}, {measurement.source or 'its file does not name a source'}"))
    if measured.reason:
        where = f" (in {STAGE_NAMES.get(measured.ended_in, measured.ended_in)})" if measured.ended_in else ""
        facts.append(("reason", f"{measured.reason}{where}"))
    if measured.total_seconds is not None and measured.seconds_per_step is not None:
        text = f"{measured.total_seconds:.2f} s without loading, {measured.seconds_per_step:.3f} s a step"
        facts.append(("time", text))
    for holder in measurement.holders:
        facts.append(("held by", f"{holder['name']} ({holder['pid']}), {size_text(holder['used_bytes'])}"))
    if measured.free_before_bytes is not None:
        facts.append(("free", f"{size_text(measured.free_before_bytes)} as it began"))
    is_compared = bool(measurement.predictions and measured.stages)
    if measured.peak_allocated_bytes is not None and not is_compared:
        reserved = size_text(measured.peak_reserved_bytes)
        facts.append(("peak", f"{size_text(measured.peak_allocated_bytes)} allocated, {reserved} reserved"))
    if measured.peak_reserved_bytes is not None and measured.num_alloc_retries is not None:
        text = f"context {size_text(measured.context_bytes)}, {measured.num_alloc_retries} allocator retries"
        facts.append(("device", f"peak {size_text(measured.peak_device_bytes)}, {text}"))
    width = max(len(name) for name, _ in facts)
    parts = ["\n".join(f"{name.ljust(width)}  {text}" for name, text in facts)]
    if is_compared:
        parts.append(_comparison_table(measurement))
    if environment.emulated_bytes is not None:
        parts.append(
            f"{short_gib(environment.emulated_bytes)} emulated: torch refused more, the CUDA context included. "
            f"Kernels and context are those of {environment.card}."
        )
    if environment.device_kind == "cpu":
        parts.append("A rehearsal on the CPU: live tensors only, no kernels' workspace. It says nothing about a GPU.")
    return "\n\n".join(parts)


def _runs_table(found: Sequence[Measurement]) -> str:
    """Write a table with one line for each run.

    The column of origins is left out if all runs are own ones, and that of options if no run has any.
    """
    versions = planned_for()
    is_mixed = any(measurement.origin != "own" for measurement in found)
    has_options = any(measurement.options for measurement in found)
    rows = []
    for measurement in found:
        request, measured = measurement.request, measurement.measured
        errors = [
            f"{percent_text(error)} {prediction.basis}"
            for prediction in measurement.predictions
            if (error := peak_error(measurement, prediction)) is not None
        ]
        what = request.task if measurement.scope == "pipeline" else measurement.scope
        rows.append(
            (
                measurement.measurement_id[:8],
                measurement.created_at[:16].replace("T", " "),
                *([measurement.origin] if is_mixed else []),
                f"{what} {request.effective_width}x{request.effective_height} x{request.batch}",
                *([measurement.options] if has_options else []),
                measurement.environment.card_name,
                measured.outcome,
                size_text(measured.peak_allocated_bytes),
                size_text(measured.peak_reserved_bytes),
                ", ".join(errors) or "-",
                "stale" if measurement.is_stale(versions) else "",
            )
        )
    origin = ["origin"] if is_mixed else []
    options = ["options"] if has_options else []
    header = ("id", "UTC", *origin, "request", *options, "on", "outcome", "allocated", "reserved", "off by", "")
    return text_table(header, rows, right=range(len(header) - 4, len(header) - 1))


@click.command("list")
@click.option("--reference", is_flag=True, help="The reference runs that ship with the planner.")
@json_option
def list_command(reference: bool, as_json: bool) -> int:
    """List all runs of the history, newest first, or the reference runs."""
    if reference:
        found = reference_runs()
    else:
        store = open_store()
        found = store.measurements()
        for path in store.damaged_files():
            # A file that was set aside just now has been mentioned already.
            if path != store.moved_aside:
                say(f"{path} is a damaged history that was set aside")
                say(recover_hint(path))
    if as_json:
        print_json({"schema": SCHEMA, "measurements": [measurement.to_dict() for measurement in found]})
    elif found:
        print(_runs_table(found))
    else:
        say("no run was measured yet - 'python -m planner verify' measures one, '--device cpu' works anywhere")
    return 0


def _run_named(name: str) -> Measurement:
    """Find the run whose id begins with `name`, in the history or else in the reference runs."""
    store = open_store()
    try:
        return store.measurement(name)
    except InvalidArgument:
        found = [run for run in reference_runs() if name and run.measurement_id.startswith(name)]
        if len(found) != 1 or any(run.measurement_id.startswith(name) for run in store.measurements()):
            raise
        return found[0]


@click.command("show")
@click.argument("id")
@json_option
def show_command(id: str, as_json: bool) -> int:
    """Show one run in full; ID is its id, or the beginning of it."""
    measurement = _run_named(id)
    if as_json:
        print_json({"schema": SCHEMA, "measurement": measurement.to_dict()})
    else:
        print(measurement_text(measurement))
    return 0


@click.command("delete")
@click.argument("id")
@click.option("--yes", is_flag=True, help="Do not ask.")
@json_option
def delete_command(id: str, yes: bool, as_json: bool) -> int:
    """Remove one run, after asking; ID is its id, or the beginning of it."""
    store = open_store()
    measurement = store.measurement(id)
    if not yes:
        if not sys.stdin.isatty():
            raise PlannerError("nobody can be asked here whether to delete the run - add --yes")
        say(measurement_text(measurement))
        say("delete this run? [y/N] ")
        if sys.stdin.readline().strip().lower() not in ("y", "yes"):
            say("kept")
            return 0
    store.delete_measurement(measurement.measurement_id)
    if as_json:
        print_json({"schema": SCHEMA, "deleted": measurement.measurement_id})
    else:
        say(f"deleted {measurement.measurement_id}")
    return 0
