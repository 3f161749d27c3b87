"""Every measured run against every estimator, the published formula and the dry run: how far off each of them is.

Errors are ``predicted / measured - 1``: negative says too little, which is the dangerous side.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from statistics import median
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from planner.dryrun import RUN_TO_RUN
from planner.estimators import CAVEATS, ESTIMATORS, Scope
from planner.formula import estimate
from planner.halves import STAGE_OF
from planner.report import SCHEMA
from planner.request import GenerationRequest

if TYPE_CHECKING:
    from planner.evidence import Observation
    from planner.grading import Graded

Peak = Literal["allocated", "reserved"]

# The formulas are for attention that keeps no score matrix, which both of these are.
FUSED_ATTENTION = ("sdpa", "xformers")
DRY_RUN, FORMULA = "dry-run", "formula"
# Ours first, then the others in their own order.
NAMES = {DRY_RUN: "Will It Fit, dry run", FORMULA: "published formula"} | {one.key: one.name for one in ESTIMATORS}
OURS = (DRY_RUN, FORMULA)


@dataclass(frozen=True)
class ComparedRun:
    """One measured peak and what each estimator says of it. Bytes; None where it has no formula for such a run."""

    observation: Observation
    peak: Peak
    measured_bytes: int
    predicted: dict[str, int | None]

    def error(self, key: str) -> float | None:
        """Compute ``predicted / measured - 1``; None where the estimator has no formula for such a run."""
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
        """The estimator's name as a reader should see it."""
        return NAMES[self.key]


@dataclass(frozen=True)
class Section:
    """Runs of one kind, `columns` their groups with how many runs each has, and a line for each estimator."""

    title: str
    runs: tuple[ComparedRun, ...]
    columns: dict[str, int]
    lines: tuple[Line, ...]

    @property
    def counts(self) -> dict[Peak, int]:
        """How many of the runs are compared by their peak allocated, and how many by their peak reserved."""
        found = Counter(run.peak for run in self.runs)
        return {"allocated": found["allocated"], "reserved": found["reserved"]}


class Comparison(NamedTuple):
    """Every section that has a run, and how many runs were left out, by reason."""

    sections: tuple[Section, ...]
    left_out: dict[str, int]


def _reason_to_leave_out(observation: Observation) -> str | None:
    """Why a run that was graded is not compared, or None."""
    if observation.request.offload != "none":
        return f"{observation.request.offload} offload, which no estimator counts"
    if observation.attention not in FUSED_ATTENTION:
        return f"attention other than {' or '.join(FUSED_ATTENTION)}, which the formulas are not for"
    return None


def _reason_not_graded(observation: Observation) -> str:
    if observation.kind == "out-of-memory":
        return "out of memory, so that the peak is not known"
    if observation.kind == "limited":
        return "allocator retries, so that the peak is the GPU's own end"
    return "no memory program for such a run"


def _formula_bytes(scope: Scope, peak: Peak, request: GenerationRequest) -> int:
    """The published formula's peak allocated, or with its 20 % the peak reserved, as its answer has them."""
    breakdown = estimate(request)
    if scope == "pipeline":
        allocated = breakdown.base_bytes + breakdown.activation_bytes
    else:
        allocated = breakdown.stages[STAGE_OF[scope]]
    return allocated if peak == "allocated" else allocated * 12 // 10


def _compared(one: Graded, peak: Peak, measured_bytes: int) -> ComparedRun:
    observation = one.observation
    request, scope = observation.request, observation.scope
    ours: dict[str, int | None] = {
        DRY_RUN: (one.predicted if peak == "allocated" else one.reserved)["dry-run"],
        FORMULA: _formula_bytes(scope, peak, request),
    }
    others = {of.key: of.bytes_of(scope, request) for of in ESTIMATORS}
    return ComparedRun(observation, peak, measured_bytes, ours | others)


def _measured(observation: Observation, peak: Peak) -> int | None:
    return observation.peak_allocated_bytes if peak == "allocated" else observation.peak_reserved_bytes


def _line(key: str, runs: Sequence[ComparedRun], columns: Sequence[Column]) -> Line | None:
    """What one estimator's errors come to; None where it has a formula for none of the runs."""
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


def _section(title: str, runs: Sequence[ComparedRun], columns: Sequence[Column]) -> Section:
    lines = [line for key in NAMES if (line := _line(key, runs, columns))]
    counts = {column.name: sum(column.holds(run.observation.request) for run in runs) for column in columns}
    return Section(title, tuple(runs), {name: count for name, count in counts.items() if count}, tuple(lines))


def compare(graded: Iterable[Graded], observations: Iterable[Observation]) -> Comparison:
    """Compare every graded run with every estimator; `observations` are all runs, so that those left out are counted.

    Whole pipelines are compared by the peak allocated where it was measured, else by the peak reserved. Halves of the
    VAE alone are compared by both, each in a section of its own.
    """
    graded = list(graded)
    known = {one.observation.run_id for one in graded}
    left_out = Counter(_reason_not_graded(one) for one in observations if one.run_id not in known)
    kept: list[Graded] = []
    for one in graded:
        reason = _reason_to_leave_out(one.observation)
        if reason:
            left_out[reason] += 1
        else:
            kept.append(one)
    pipelines = []
    for one in kept:
        if one.observation.scope == "pipeline":
            peak: Peak = "reserved" if one.observation.peak_allocated_bytes is None else "allocated"
            if size := _measured(one.observation, peak):
                pipelines.append(_compared(one, peak, size))
    sections = [_section("Whole pipelines", pipelines, BY_BATCH)]
    peaks: tuple[Peak, ...] = ("allocated", "reserved")
    halves: tuple[tuple[str, Scope], ...] = (("VAE decode alone", "vae.decode"), ("VAE encode alone", "vae.encode"))
    for title, scope in halves:
        for peak in peaks:
            found = [
                _compared(one, peak, size)
                for one in kept
                if one.observation.scope == scope and (size := _measured(one.observation, peak))
            ]
            sections.append(_section(f"{title}, peak {peak}", found, BY_TILING))
    return Comparison(tuple(section for section in sections if section.runs), dict(left_out.most_common()))


def percent(error: float | None) -> str:
    """Write an error with its sign; as many digits as it takes to see it, a dash where there is none.

    >>> percent(0.1695), percent(-0.0063), percent(None)
    ('+17%', '-0.63%', '-')
    """
    if error is None:
        return "-"
    digits = 0 if abs(error) >= 0.0995 else 2
    # What rounds to nothing has no sign.
    shown = round(error, 2 + digits)
    return f"{shown:+.{digits}%}" if shown else f"{0:.{digits}%}"


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
    """Everything that must be known beside the tables, a line each: columns, caveats, and which runs were left out."""
    left = [f"left out: {count} with {reason}" for reason, count in comparison.left_out.items()]
    return [*LEGEND, *CAVEATS, *left]


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
    """Build the JSON object of ``estimators --json``: errors are fractions, negative is too low; sizes are bytes."""
    return {
        "schema": SCHEMA,
        "too_little_below": -RUN_TO_RUN,
        "sections": [
            {
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
