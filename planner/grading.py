"""Every measured run against what each basis says of it, calibration without the run itself."""

from collections.abc import Callable, Hashable, Iterable, Sequence
from dataclasses import dataclass
from statistics import median

from planner.calibrate import Calibrated, Run, held_out
from planner.curves import PREFERRED
from planner.evidence import Evidence, Observation
from planner.formula import estimate
from planner.gpus import family_of
from planner.halves import STAGE_OF
from planner.request import GenerationRequest

# The bases that predict a peak; a measured one does not predict.
GRADED_BASES = ("formula", "dry-run", "calibrated")


@dataclass(frozen=True, eq=False)
class Graded:
    """One full run and the allocated peak that each basis gives it. Bytes.

    `calibrated` is what the other runs say. `stages` has, by stage that was measured, (measured, dry run, calibrated).
    """

    observation: Observation
    predicted: dict[str, int]
    reserved: dict[str, int]
    calibrated: Calibrated
    stages: dict[str, tuple[int, int, int]]

    @property
    def measured_bytes(self) -> int:
        """The measured allocated peak."""
        return self.observation.peak_allocated_bytes

    @property
    def peak_stage(self) -> str:
        """The stage that peaked: as measured where stages were, else as calibrated."""
        stages = dict(self.observation.stages)
        if not stages:
            return self.calibrated.corrected.peak_stage
        return max(reversed(stages), key=lambda stage: stages[stage])

    def error(self, basis: str) -> float:
        """``predicted / measured - 1`` of the allocated peak: negative is a prediction that was too low."""
        return self.predicted[basis] / self.measured_bytes - 1

    @property
    def is_covered(self) -> bool:
        """Whether the measured peak lies in the calibrated interval."""
        low, high = self.calibrated.allocated
        return low <= self.measured_bytes <= high

    @property
    def is_reserved_covered(self) -> bool | None:
        """Whether the measured reserved peak lies in its interval; None where it was not measured."""
        size, (low, high) = self.observation.peak_reserved_bytes, self.calibrated.reserved
        return None if size is None else low <= size <= high


def grade(evidence: Evidence, report: Callable[[float], None] | None = None) -> list[Graded]:
    """Every full run of the evidence that the memory programs can play, newest first.

    `report` is told how much is done, 0 to 1.
    """
    families = sorted({family_of(one.capability) for one in evidence.observations})
    found: dict[str, Graded] = {}
    by_id = {one.run_id: one for one in evidence.observations}
    for index, family in enumerate(families):

        def part(done: float, index: int = index) -> None:
            if report:
                report((index + done) / len(families))

        part(0.0)
        runs = evidence.with_curves(evidence.of_family(family))
        said = held_out(runs, part)
        found |= {run.run_id: _graded(by_id[run.run_id], run, said[run.run_id]) for run in runs if run.run_id in said}
    return [found[one.run_id] for one in evidence.observations if one.run_id in found]


def _graded(observation: Observation, run: Run, said: Calibrated) -> Graded:
    raw = {stage: round(float(curve[PREFERRED])) for stage, curve in run.curve.stages.items()}
    corrected = {stage: round(one.median) for stage, one in said.corrected.stages.items()}
    peak = round(said.corrected.allocated.median)
    return Graded(
        observation=observation,
        predicted={
            "formula": _formula_bytes(observation),
            "dry-run": max(raw.values()),
            "calibrated": peak,
        },
        reserved={
            "dry-run": round(float(run.curve.reserved[PREFERRED])),
            "calibrated": max(round(said.corrected.reserved.median), peak),
        },
        calibrated=said,
        stages={
            stage: (size, raw[stage], corrected[stage]) for stage, size in observation.stages.items() if stage in raw
        },
    )


def _formula_bytes(observation: Observation) -> int:
    breakdown = estimate(observation.request)
    if observation.scope != "pipeline":
        return breakdown.stages[STAGE_OF[observation.scope]]
    return breakdown.base_bytes + breakdown.activation_bytes


@dataclass(frozen=True)
class Group:
    """Runs alike in one thing: how far off each basis is in the median, how far to one side, how many are covered."""

    name: str
    count: int
    error: dict[str, float]
    bias: dict[str, float]
    covered: float


def group_of(name: str, graded: Sequence[Graded]) -> Group:
    """The summary of at least one run."""
    errors = {basis: [one.error(basis) for one in graded] for basis in GRADED_BASES}
    return Group(
        name=name,
        count=len(graded),
        error={basis: median(map(abs, found)) for basis, found in errors.items()},
        bias={basis: median(found) for basis, found in errors.items()},
        covered=sum(one.is_covered for one in graded) / len(graded),
    )


def groups(graded: Iterable[Graded], key: Callable[[Graded], Hashable]) -> list[Group]:
    """The runs by what `key` says of each, the largest group first."""
    found: dict[Hashable, list[Graded]] = {}
    for one in graded:
        found.setdefault(key(one), []).append(one)
    made = [group_of(str(name), members) for name, members in found.items()]
    return sorted(made, key=lambda group: -group.count)


def size_class(request: GenerationRequest) -> str:
    """How large the request's images are, all together, in the words of a table."""
    pixels = request.effective_width * request.effective_height * request.batch
    for limit, name in ((0.3, "up to 512×512"), (1.1, "up to 1024×1024"), (4.3, "up to 2048×2048")):
        if pixels <= limit * 1024**2:
            return name
    return "larger"
