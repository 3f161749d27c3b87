"""Every run that ships against what each basis says of it, no run graded on itself.

``python -m tests.accuracy`` prints the tables of the README and fails where predictions lean to one side, where an
interval holds fewer runs than it says, or where calibration makes a group of runs worse.
"""

import sys

from cache.curve_store import CurveStore
from cache.evidence import observation_of
from cache.records import Measurement
from cache.reference import reference_runs
from planner.calibrate import NOMINAL
from planner.components import STAGE_NAMES
from planner.evidence import Evidence
from planner.grading import GRADED_BASES, Graded, Group, grade, group_of, groups, size_class
from planner.program import shipped
from planner.units import MIB

# The most that a basis above the formula may be off to one side, in the median over all runs.
MAX_BIAS = 0.005
MIN_GROUP = 3
# A difference that no table shows.
NOISE = 1e-6

KEYS = {
    "card": lambda one: one.observation.card_name,
    "scope": lambda one: one.observation.scope,
    "stage": lambda one: STAGE_NAMES[one.peak_stage],
    "size": lambda one: size_class(one.observation.request),
    "options": lambda one: one.observation.cell.options,
}


def graded_runs(runs: tuple[Measurement, ...] | None = None) -> list[Graded]:
    """The runs that ship, or these, graded by one another."""
    observations = [one for run in (runs or reference_runs()) if (one := observation_of(run))]
    # Each is graded as if its own versions were those of today.
    return grade(Evidence(observations, CurveStore(shipped(), None).curves_of, ""))


def all_groups(graded: list[Graded]) -> list[Group]:
    """All runs together, then by each of `KEYS`."""
    found = [group_of("all runs", graded)]
    for key in KEYS.values():
        found += groups(graded, key)
    return found


def problems(graded: list[Graded]) -> list[str]:
    """What would make a reader distrust the predictions, one sentence each."""
    found = []
    everything = group_of("all runs", graded)
    for basis in ("dry-run", "calibrated"):
        if abs(everything.bias[basis]) > MAX_BIAS:
            found.append(f"{basis} is off by {everything.bias[basis]:+.2%} in the median, more than {MAX_BIAS:.1%}")
    if everything.covered < NOMINAL:
        found.append(f"the interval holds {everything.covered:.0%} of the runs, not {NOMINAL:.0%}")
    reserved = [one.is_reserved_covered for one in graded if one.is_reserved_covered is not None]
    if reserved and sum(reserved) < NOMINAL * len(reserved):
        found.append(f"the reserved interval holds {sum(reserved)} of {len(reserved)} runs, not {NOMINAL:.0%}")
    for group in all_groups(graded):
        if group.count >= MIN_GROUP and group.error["calibrated"] > group.error["dry-run"] + NOISE:
            found.append(f"calibration makes {group.name} worse: {group.error['calibrated']:.3%}")
    return found


def _row(one: Graded, peak: str, measured: int, raw: int, inside: tuple[int, int]) -> str:
    request = one.observation.request
    what = "whole pipeline" if one.observation.scope == "pipeline" else one.observation.scope
    options = "" if one.observation.cell.options == "plain" else f", {one.observation.cell.options}"
    low, high = (f"{end / MIB:,.0f}" for end in inside)
    return (
        f"| {one.observation.card_name} | {what}{options} | {request.effective_width}×{request.effective_height} "
        f"| {peak} | {measured / MIB:,.1f} | {raw / MIB:,.1f} | {raw / measured - 1:+.2%} | {low} to {high} |"
    )


def table(graded: list[Graded]) -> str:
    """Every peak of every run as Markdown."""
    lines = [
        "| card | what ran | size | peak | measured, MiB | dry run, MiB | off by | interval, MiB |",
        "|---|---|---|---|---:|---:|---:|---:|",
    ]
    for one in graded:
        lines.append(_row(one, "allocated", one.measured_bytes, one.predicted["dry-run"], one.interval_bytes))
        if reserved := one.observation.peak_reserved_bytes:
            lines.append(_row(one, "reserved", reserved, one.reserved["dry-run"], one.calibrated.reserved))
    return "\n".join(lines)


def group_table(graded: list[Graded]) -> str:
    """Every group as Markdown."""
    lines = [f"| median error of | runs | {' | '.join(GRADED_BASES)} | inside |", "|---|---:|---:|---:|---:|---:|"]
    for group in all_groups(graded):
        errors = " | ".join(f"{group.error[basis]:.2%}" for basis in GRADED_BASES)
        lines.append(f"| {group.name} | {group.count} | {errors} | {group.covered:.0%} |")
    return "\n".join(lines)


def main() -> int:
    """Print the table, and what is wrong with it."""
    graded = graded_runs()
    print(f"{table(graded)}\n\n{group_table(graded)}")
    found = problems(graded)
    for problem in found:
        print(f"problem: {problem}", file=sys.stderr)
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
