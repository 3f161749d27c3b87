"""Every run that ships against what each basis says of it, no run graded on itself.

``python -m tests.accuracy`` prints how wrong predictions are by GPU and by group, and fails where they lean to one
side, where an interval holds fewer runs than it says, or where calibration makes a group of runs worse: of whole
pipelines and of halves of the VAE, each by itself. `tests.documents` puts its tables into docs/accuracy.md.
"""

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from cache.history.curves import CurveStore
from cache.history.observations import observation_of
from cache.history.reference import reference_runs, sources
from cache.records import Measurement
from planner.accuracy.by_gpu import by_gpu, measured_gpus
from planner.accuracy.grading import GRADED_BASES, Graded, Group, grade, group_of, groups, size_class
from planner.calibration.calibrate import NOMINAL
from planner.calibration.evidence import Evidence
from planner.components import STAGE_NAMES
from planner.programs.files import shipped
from planner.report.accuracy import accuracy_markdown, gpu_table, markdown_table
from tests.conftest import ROOT

# The most that a basis above the formula may be off to one side, in the median over all runs.
MAX_BIAS = 0.005
MIN_GROUP = 3
# A difference that no table shows.
NOISE = 1e-6

KEYS = {
    "GPU": lambda one: one.observation.card_name,
    "peak": lambda one: f"{one.peak} peak",
    "scope": lambda one: one.observation.request.task if one.is_whole else one.observation.scope,
    "stage": lambda one: STAGE_NAMES[one.peak_stage],
    "size": lambda one: size_class(one.observation.request),
    "options": lambda one: one.observation.traits.options,
}

BEGIN = "<!-- 'make documents' writes what follows -->"
END = "<!-- 'make documents' wrote what stands above -->"
DOCUMENT = ROOT / "docs/accuracy.md"


def graded_runs(runs: Sequence[Measurement] | None = None) -> list[Graded]:
    """Grade the runs that ship, or these, by one another."""
    observations = [one for run in (runs or reference_runs()) if (one := observation_of(run))]
    # Each is graded as if its own versions were those of today.
    return grade(Evidence(observations, CurveStore(shipped(), None).curves_of, ""))


def kinds(graded: Sequence[Graded]) -> dict[str, list[Graded]]:
    """Part whole pipelines from halves of the VAE, by name; a kind without runs is left out."""
    found = {
        "whole pipelines": [one for one in graded if one.is_whole],
        "halves of the VAE": [one for one in graded if not one.is_whole],
    }
    return {name: runs for name, runs in found.items() if runs}


def all_groups(name: str, graded: Sequence[Graded]) -> list[Group]:
    """All runs of one kind together, then by each of `KEYS`."""
    found = [group_of(name, graded)]
    for key in KEYS.values():
        found += groups(graded, key)
    return found


def problems(graded: Sequence[Graded]) -> list[str]:
    """What would make a reader distrust the predictions, one sentence each."""
    return [
        f"{name}: {problem}"
        for name, runs in kinds(graded).items()
        for problem in _problems(all_groups(name, runs), runs)
    ]


def _problems(found_groups: Sequence[Group], graded: Sequence[Graded]) -> list[str]:
    found, everything = [], found_groups[0]
    for basis in ("dry-run", "calibrated"):
        if abs(everything.bias[basis]) > MAX_BIAS:
            found.append(f"{basis} is off by {everything.bias[basis]:+.2%} in the median, more than {MAX_BIAS:.1%}")
    if everything.covered < NOMINAL:
        found.append(f"the interval holds {everything.covered:.0%} of the runs, not {NOMINAL:.0%}")
    reserved = [one.is_reserved_covered for one in graded if one.is_reserved_covered is not None]
    if sum(reserved) < NOMINAL * len(reserved):
        found.append(f"the reserved interval holds {sum(reserved)} of {len(reserved)} runs, not {NOMINAL:.0%}")
    for group in found_groups:
        if group.count >= MIN_GROUP and group.error["calibrated"] > group.error["dry-run"] + NOISE:
            found.append(f"calibration makes {group.name} worse: {group.error['calibrated']:.3%}")
    return found


def group_table(name: str, graded: Sequence[Graded]) -> str:
    """Every group of one kind of runs as Markdown."""
    rows = [
        (
            group.name,
            str(group.count),
            *(f"{100 * group.error[basis]:.2f} %" for basis in GRADED_BASES),
            f"{group.covered:.0%}".replace("%", " %"),
        )
        for group in all_groups(name, graded)
    ]
    return markdown_table(("median error of", "runs", *GRADED_BASES, "inside"), rows, range(1, 6))


def document(graded: Sequence[Graded]) -> str:
    """What docs/accuracy.md says of the runs that ship: ``accuracy --format md``, then the errors by group."""
    told = [by_gpu(graded, gpu) for gpu in measured_gpus(graded)]
    tables = [f"{name[:1].upper()}{name[1:]}:\n\n{group_table(name, runs)}" for name, runs in kinds(graded).items()]
    return "\n\n".join([accuracy_markdown(graded, told, sources()), "## By group", *tables])


def written(graded: Sequence[Graded]) -> dict[Path, str]:
    """Give the text between the marks of each file: a line for each GPU, then everything."""
    return {DOCUMENT: f"{gpu_table(graded)}\n\n{document(graded)}"}


def between_marks(text: str) -> str:
    """What stands between the marks of a file's text."""
    return text.partition(BEGIN)[2].partition(END)[0].strip()


def write(texts: Mapping[Path, str]) -> None:
    for path, text in texts.items():
        before, _, rest = path.read_text().partition(BEGIN)
        path.write_text(f"{before}{BEGIN}\n\n{text}\n\n{END}{rest.partition(END)[2]}")


def main() -> int:
    """Print the tables and what is wrong with them."""
    graded = graded_runs()
    print(f"{gpu_table(graded)}\n\n{document(graded)}")
    found = problems(graded)
    for problem in found:
        print(f"problem: {problem}", file=sys.stderr)
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
