"""List the differences of runs: request, environment, outcome, and how far off predictions were."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict
from typing import Any, NamedTuple

from cache.records import Measurement
from pages.shared.frame.escape import typeset
from pages.shared.history.errors import errors_of
from pages.shared.history.run import when
from pages.shared.history.runs import BASES, off_column, spreadsheet_safe, task_of
from planner.components import STAGE_NAMES, STAGES
from planner.request import FIELDS
from planner.units import gib_value, signed_gib, signed_percent

# Labels of fields of the environment; libraries keep their own names.
_NAMES = {
    "device_kind": "Device",
    "compute_capability": "Compute capability",
    "mig": "MIG",
    "driver": "Driver",
    "cuda": "CUDA",
    "cudnn": "cuDNN",
    "attention": "Attention",
    "allocator_settings": "Allocator settings",
    "weights": "Weights",
    "method": "Method",
}


REQUEST, OUTCOME, MEMORY, TIME, ERRORS = (
    "Request and environment",
    "Outcome",
    "Memory, GiB",
    "Time, seconds",
    "Error of the predicted peak",
)
KINDS = (OUTCOME, MEMORY, TIME, ERRORS, REQUEST)
# The headings of differences of the second run from the first.
APART = {MEMORY: "B − A, GiB", TIME: "B against A, %"}
NOTHING, EQUAL = "–", "equal"


class Line(NamedTuple):
    """One line of the comparison: each run's value as text, and the difference of the second run from the first."""

    kind: str
    name: str
    values: tuple[str, ...]
    apart: str = NOTHING

    @property
    def differs(self) -> bool:
        """Return whether the runs have different values."""
        return len(set(self.values)) > 1

    @property
    def is_told(self) -> bool:
        """Return whether the line is shown at first; errors are also shown where they are equal."""
        return self.differs or self.kind == ERRORS


def _shown(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    return NOTHING if value in (None, "") else spreadsheet_safe(str(value))


def _number(value: float | None, digits: int) -> str:
    return NOTHING if value is None else f"{value:.{digits}f}"


def _sizes(name: str, sizes: Sequence[int | None]) -> Line:
    first, last = sizes[0], sizes[-1]
    apart = NOTHING
    if first is not None and last is not None:
        apart = EQUAL if first == last else signed_gib(last - first, 3).removesuffix(" GiB")
    return Line(MEMORY, name, tuple(_number(None if size is None else gib_value(size), 3) for size in sizes), apart)


def _seconds(name: str, seconds: Sequence[float | None]) -> Line:
    first, last = seconds[0], seconds[-1]
    apart = NOTHING
    if first and last is not None:
        apart = EQUAL if first == last else typeset(signed_percent(last / first - 1, 1))
    return Line(TIME, name, tuple(_number(value, 2) for value in seconds), apart)


def _off(runs: Sequence[Measurement], basis: str) -> Line | None:
    errors = [errors_of(run).get(basis) for run in runs]
    if all(error is None for error in errors):
        return None
    values = tuple(NOTHING if error is None else typeset(signed_percent(error)) for error in errors)
    return Line(ERRORS, off_column(basis), values)


def difference_lines(runs: Sequence[Measurement]) -> list[Line]:
    """Return a line for each value of these runs, whether it differs or not."""

    def plain_line(name: str, of: Callable[[Measurement], Any], kind: str = REQUEST) -> Line:
        return Line(kind, name, tuple(_shown(of(run)) for run in runs))

    lines = [plain_line("When, UTC", when), plain_line("Origin", lambda run: run.origin), plain_line("Task", task_of)]
    for field in FIELDS:
        if field.name != "task":
            lines.append(plain_line(field.label, lambda run, name=field.name: getattr(run.request.canonical(), name)))
    lines.append(plain_line("GPU", lambda run: run.environment.card_name))
    lines.append(_sizes("Total memory of the GPU", [run.environment.total_bytes for run in runs]))
    lines.append(_sizes("Emulated capacity", [run.environment.emulated_bytes for run in runs]))
    for name in asdict(runs[0].environment):
        if name not in ("card", "uuid_hash", "total_bytes", "emulated_bytes"):
            lines.append(plain_line(_NAMES.get(name, name), lambda run, name=name: getattr(run.environment, name)))
    lines.append(plain_line("Outcome", lambda run: run.measured.outcome, OUTCOME))
    for name, attribute in (
        ("Peak allocated", "peak_allocated_bytes"),
        ("Peak reserved", "peak_reserved_bytes"),
        ("Peak on device", "peak_device_bytes"),
        ("Context", "context_bytes"),
        ("Weights at the start", "weights_bytes"),
    ):
        lines.append(_sizes(name, [getattr(run.measured, attribute) for run in runs]))
    lines.append(plain_line("Retries", lambda run: run.measured.num_alloc_retries, OUTCOME))
    stages = [{stage.stage: stage for stage in run.measured.stages} for run in runs]
    for stage in STAGES:
        of = [by_name.get(stage) for by_name in stages]
        if any(of):
            lines.append(
                _sizes(f"{STAGE_NAMES[stage]} peak", [one.peak_allocated_bytes if one else None for one in of])
            )
            lines.append(_seconds(STAGE_NAMES[stage], [one.seconds if one else None for one in of]))
    lines.append(_seconds("A step", [run.measured.seconds_per_step for run in runs]))
    lines.append(_seconds("Total without loading", [run.measured.total_seconds for run in runs]))
    bases = dict.fromkeys((*BASES, *(one.basis for run in runs for one in run.predictions)))
    return lines + [line for basis in bases if (line := _off(runs, basis))]
