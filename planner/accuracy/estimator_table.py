"""Compare every measured run with every estimator, the published formula and the dry run.

Errors are ``predicted / measured - 1``: negative says too little, which is the dangerous side.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from statistics import median
from typing import TYPE_CHECKING, Any, NamedTuple

from planner.accuracy.estimators import CAVEATS, ESTIMATORS
from planner.answer import SCHEMA
from planner.components import Scope
from planner.formula import estimate
from planner.programs.vae_alone import STAGE_OF
from planner.replay.assumptions import RUN_TO_RUN
from planner.request import GenerationRequest
from planner.units import signed_percent

if TYPE_CHECKING:
    from planner.accuracy.grading import Graded, Peak
    from planner.calibration.runs import Observation

# The formulas are for attention that keeps no score matrix, which both of these are.
FUSED_ATTENTION = ("sdpa", "xformers")
DRY_RUN, FORMULA = "dry-run", "formula"
# Ours first, then the others in their own order.
NAMES = {DRY_RUN: "Will It Fit, dry run", FORMULA: "published formula"} | {one.key: one.name for one in ESTIMATORS}

TITLES: dict[Scope, str] = {
    "pipeline": "Whole pipelines",
    "vae.decode": "VAE decode alone",
    "vae.encode": "VAE encode alone",
}


@dataclass(frozen=True)
class ComparedRun:
    """One measured peak and what each estimator says of it. Bytes.

    A prediction is None where the estimator has no formula for such a run. `is_capped` says that by the dry run the run
    met the end of its GPU's memory, within which it was then replayed.
    """

    observation: Observation
    peak: Peak
    measured_bytes: int
    predicted: dict[str, int | None]
    is_capped: bool = False

    def error(self, key: str) -> float | None:
        """Compute ``predicted / measured - 1``.

        The value is None where the estimator has no formula for such a run.
        """
        size = self.predicted[key]
        return None if size is None else size / self.measured_bytes - 1


class Column(NamedTuple):
    """A group of runs: its heading, and which requests are in it."""

    name: str
    holds: Callable[[GenerationRequest], bool]


BY_BATCH = (
    Column("batch 1", lambda request: request.batch == 1),
    Column("batch 2-4", lambda request: 2 <= request.batch <= 4),
    Column("batch 5+", lambda request: request.batch >= 5),
)
BY_TILING = (
    Column("whole image", lambda request: not request.vae_tiling),
    Column("tiled", lambda request: request.vae_tiling),
)


@dataclass(frozen=True)
class Line:
    """One estimator over the runs of a section that it has a formula for: `count` of them, at least one.

    `groups` are medians of the error with its sign, by column, None where no run is in it. `median_error` is the median
    of the error to either side, `worst` the largest with its sign. `too_little` counts predictions that were too low by
    more than repeated runs differ.
    """

    key: str
    count: int
    groups: dict[str, float | None]
    median_error: float
    bias: float
    worst: float
    too_little: int

    @property
    def name(self) -> str:
        """Give the estimator's name for readers."""
        return NAMES[self.key]


@dataclass(frozen=True)
class Section:
    """Runs of one kind, `columns` their groups with how many runs each has, and a line for each estimator."""

    scope: Scope
    runs: tuple[ComparedRun, ...]
    columns: dict[str, int]
    lines: tuple[Line, ...]

    @property
    def title(self) -> str:
        """Give the section's heading."""
        return TITLES[self.scope]

    @property
    def label(self) -> str:
        """Give the heading, with the peak where there is a section for each."""
        return self.title if self.scope == "pipeline" else f"{self.title}, {self.runs[0].peak}"

    @property
    def counts(self) -> dict[Peak, int]:
        """Count the runs that are compared by the allocated and by the reserved peak."""
        found = Counter(run.peak for run in self.runs)
        return {"allocated": found["allocated"], "reserved": found["reserved"]}


class Comparison(NamedTuple):
    """Every section that has a run, and how many runs were left out, by reason."""

    sections: tuple[Section, ...]
    left_out: dict[str, int]


def _reason_to_leave_out(one: Graded) -> str | None:
    """Give why a run that was graded is not compared, or None."""
    observation = one.observation
    if observation.request.offload != "none":
        return f"{observation.request.offload} offload, which no estimator counts"
    if observation.attention not in FUSED_ATTENTION:
        return f"attention other than {' or '.join(FUSED_ATTENTION)}, which the formulas are not for"
    return None


def _reason_not_graded(observation: Observation) -> str:
    """Give why a run was not graded, and so is not compared."""
    if observation.kind == "out-of-memory":
        return "out of memory, so that the peak is not known"
    if observation.kind == "limited":
        return "allocator retries, so that the peak is the GPU's own end"
    return "no memory program for such a run"


def _formula_bytes(scope: Scope, peak: Peak, request: GenerationRequest) -> int:
    """Compute the published formula's allocated peak, or with its 20 % the reserved one."""
    breakdown = estimate(request)
    if scope == "pipeline":
        return breakdown.total_bytes if peak == "reserved" else breakdown.base_bytes + breakdown.activation_bytes
    half = breakdown.stages[STAGE_OF[scope]]
    return half * 12 // 10 if peak == "reserved" else half


def _compared(one: Graded, peak: Peak, measured_bytes: int) -> ComparedRun:
    """Set one peak of a run beside what each estimator says of it."""
    observation = one.observation
    request, scope = observation.request, observation.scope
    # `predicted` is of the peak that the run is graded by.
    dry_run = one.predicted[DRY_RUN] if peak == one.peak else one.reserved[DRY_RUN]
    ours: dict[str, int | None] = {DRY_RUN: dry_run, FORMULA: _formula_bytes(scope, peak, request)}
    others = {of.key: of.bytes_of(scope, request) for of in ESTIMATORS}
    return ComparedRun(observation, peak, measured_bytes, ours | others, one.is_capped)


def _line(key: str, runs: Sequence[ComparedRun], columns: Sequence[Column]) -> Line | None:
    """Sum up one estimator's errors; None where it has a formula for none of the runs."""
    errors = [(run.observation.request, error) for run in runs if (error := run.error(key)) is not None]
    if not errors:
        return None

    def of(column: Column) -> float | None:
        found = [error for request, error in errors if column.holds(request)]
        return median(found) if found else None

    only = [error for _, error in errors]
    return Line(
        key=key,
        count=len(only),
        groups={column.name: of(column) for column in columns},
        median_error=median(map(abs, only)),
        bias=median(only),
        worst=max(only, key=abs),
        too_little=sum(error < -RUN_TO_RUN for error in only),
    )


def _section(scope: Scope, runs: Sequence[ComparedRun], columns: Sequence[Column]) -> Section:
    lines = [line for key in NAMES if (line := _line(key, runs, columns))]
    counts = {column.name: sum(column.holds(run.observation.request) for run in runs) for column in columns}
    return Section(scope, tuple(runs), {name: count for name, count in counts.items() if count}, tuple(lines))


def compare(graded: Iterable[Graded], observations: Iterable[Observation]) -> Comparison:
    """Compare every graded run with every estimator.

    `observations` are all runs, so that those left out are counted.

    Whole pipelines are compared by the peak allocated where it was measured, else by the peak reserved. Halves of the
    VAE alone are compared by both, each in a section of its own.
    """
    graded = list(graded)
    known = {one.observation.run_id for one in graded}
    left_out = Counter(_reason_not_graded(one) for one in observations if one.run_id not in known)
    kept: list[Graded] = []
    for one in graded:
        reason = _reason_to_leave_out(one)
        if reason:
            left_out[reason] += 1
        else:
            kept.append(one)
    pipelines = [_compared(one, one.peak, one.measured_bytes) for one in kept if one.is_whole]
    sections = [_section("pipeline", pipelines, BY_BATCH)]
    for scope in ("vae.decode", "vae.encode"):
        alone = [one for one in kept if one.observation.scope == scope]
        allocated = [_compared(one, one.peak, one.measured_bytes) for one in alone if one.peak == "allocated"]
        reserved = [_compared(one, "reserved", size) for one in alone if (size := one.observation.peak_reserved_bytes)]
        sections += [_section(scope, allocated, BY_TILING), _section(scope, reserved, BY_TILING)]
    return Comparison(tuple(section for section in sections if section.runs), dict(left_out.most_common()))


def percent(error: float | None) -> str:
    """Write an error with its sign.

    It has as many digits as it takes to see it, and is a dash where there is none.

    >>> percent(0.1695), percent(-0.0063), percent(None)
    ('+17%', '−0.63%', '-')
    """
    if error is None:
        return "-"
    digits = 0 if abs(error) >= 0.0995 else 2
    # An error that rounds to zero has no sign.
    return signed_percent(error, digits) if round(error, 2 + digits) else f"{0:.{digits}%}"


def header(section: Section) -> tuple[str, ...]:
    """Name the table's columns; each group says how many runs are in it."""
    groups = (f"{name} ({count})" for name, count in section.columns.items())
    return ("estimator", "runs", *groups, "median", "worst", "says too little")


def cells(section: Section, line: Line) -> tuple[str, ...]:
    """Write one line of the table."""
    return (
        line.name,
        str(line.count),
        *(percent(line.groups[name]) for name in section.columns),
        percent(line.median_error).removeprefix("+"),
        percent(line.worst),
        f"{line.too_little} of {line.count}",
    )


def about(section: Section) -> str:
    """Say which runs a section has, on which GPUs, and which of their peaks is compared."""
    cards = ", ".join(dict.fromkeys(run.observation.card_name for run in section.runs))
    count = len(section.runs)
    text = f"{count} run{'' if count == 1 else 's'} on {cards}"
    allocated, reserved = section.counts["allocated"], section.counts["reserved"]
    if allocated and reserved:
        return (
            f"{text}; {allocated} by the peak allocated, {reserved} by the peak reserved, where only that was measured"
        )
    return f"{text}, by the peak {'allocated' if allocated else 'reserved'}"


# What each column means, in one sentence a column.
LEGEND = (
    f"a group's figure is the median error with its sign; median is to either side, worst has its sign; says too "
    f"little counts predictions more than {RUN_TO_RUN:.2%} below what was measured, by which repeated runs differ",
    "an estimator without a formula for a run, as for the tiles of the VAE, has fewer runs or no line",
    "the formula's peak allocated is without its 20 %, its peak reserved with it",
)


def notes(comparison: Comparison) -> list[str]:
    """List the notes to the tables, a line each: columns, caveats, and which runs were left out."""
    capped = sum(run.is_capped for section in comparison.sections for run in section.runs)
    met = [f"by the dry run, {capped} of the runs met the end of their GPU's memory; it is replayed within that memory"]
    left = [f"left out: {count} with {reason}" for reason, count in comparison.left_out.items()]
    return [*LEGEND, *CAVEATS, *(met if capped else []), *left]


def comparison_markdown(comparison: Comparison) -> str:
    """Write the tables, the notes below them and the sources as Markdown."""
    parts: list[str] = []
    for section in comparison.sections:
        names = header(section)
        lines = [f"| {' | '.join(names)} |", f"|---|{'---:|' * (len(names) - 1)}"]
        lines += [f"| {' | '.join(cells(section, line))} |" for line in section.lines]
        parts += [f"**{section.title}**: {about(section)}.", "\n".join(lines)]
    parts.append("\n".join(f"- {note[0].upper()}{note[1:]}." for note in notes(comparison)))
    sources = ["| estimator | what it counts | source |", "|---|---|---|"]
    sources += [f"| {one.name} | {one.claims} | {one.source.replace('_', chr(92) + '_')} |" for one in ESTIMATORS]
    parts.append("\n".join(sources))
    return "\n\n".join(parts)


def _line_object(line: Line) -> dict[str, Any]:
    return {
        "key": line.key,
        "name": line.name,
        "runs": line.count,
        "groups": line.groups,
        "median_absolute_error": line.median_error,
        "median_error": line.bias,
        "worst_error": line.worst,
        "too_little_runs": line.too_little,
    }


def _run_object(run: ComparedRun) -> dict[str, Any]:
    return {
        "id": run.observation.run_id,
        "gpu": run.observation.card_name,
        "scope": run.observation.scope,
        "request": run.observation.request.to_dict(),
        "peak": run.peak,
        "measured_bytes": run.measured_bytes,
        "predicted_bytes": run.predicted,
    }


def comparison_object(comparison: Comparison) -> dict[str, Any]:
    """Build the JSON object of ``estimators --json``.

    Errors are fractions, and negative ones are predictions that were too low. Sizes are bytes.
    """
    return {
        "schema": SCHEMA,
        "too_little_below": -RUN_TO_RUN,
        "sections": [
            {
                "scope": section.scope,
                "title": section.title,
                "allocated_runs": section.counts["allocated"],
                "reserved_runs": section.counts["reserved"],
                "groups": section.columns,
                "estimators": [_line_object(line) for line in section.lines],
                "runs": [_run_object(run) for run in section.runs],
            }
            for section in comparison.sections
        ],
        "left_out": [{"reason": reason, "runs": count} for reason, count in comparison.left_out.items()],
        "estimators": [
            {"key": one.key, "name": one.name, "claims": one.claims, "source": one.source} for one in ESTIMATORS
        ],
        "notes": notes(comparison),
    }
