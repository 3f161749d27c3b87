"""Grade every measured run against what each basis predicts, calibration without the run itself."""

from collections.abc import Callable, Hashable, Iterable, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Literal

from planner.calibration.calibrate import Calibrated, held_out
from planner.calibration.evidence import Evidence
from planner.calibration.runs import Observation, Run
from planner.calibration.workspace_curve import PREFERRED
from planner.cards.lookup import family_of
from planner.formula import estimate
from planner.programs.files import shipped
from planner.programs.library import Library
from planner.programs.vae_alone import STAGE_OF
from planner.replay.assumptions import RUN_TO_RUN
from planner.replay.fast_replay import Peaks
from planner.replay.minimum import peaks_within
from planner.request import GenerationRequest

# The bases that predict a peak; a measured one does not predict.
GRADED_BASES = ("formula", "dry-run", "calibrated")

Peak = Literal["allocated", "reserved"]


@dataclass(frozen=True, eq=False)
class Graded:
    """One full run and what each basis predicts of the peak that was measured. Bytes.

    `peak` is ``allocated``, or ``reserved`` where that alone was published. `calibrated` is what the other runs say.
    `is_capped` says that the run met the end of its GPU's memory by the dry run: predictions are then those of the
    replay within that memory. `stages` has, by stage that was measured, (measured, dry run, calibrated).
    """

    observation: Observation
    peak: Peak
    measured_bytes: int
    predicted: dict[str, int]
    reserved: dict[str, int]
    calibrated: Calibrated
    stages: dict[str, tuple[int, int, int]]
    is_capped: bool = False

    @property
    def peak_stage(self) -> str:
        """Give the stage that peaked: as measured where stages were, else as calibrated."""
        stages = dict(self.observation.stages)
        if not stages:
            return self.calibrated.peak_stage
        return max(reversed(stages), key=lambda stage: stages[stage])

    @property
    def is_whole(self) -> bool:
        """Tell whether the whole pipeline ran, and not one half of the VAE alone."""
        return self.observation.scope == "pipeline"

    def error(self, basis: str) -> float:
        """Give ``predicted / measured - 1``: negative is a prediction that was too low."""
        return self.predicted[basis] / self.measured_bytes - 1

    @property
    def interval_bytes(self) -> tuple[int, int]:
        """Give the calibrated interval of `peak`, which covers repetitions of a capped run."""
        low, high = self.calibrated.allocated if self.peak == "allocated" else self.calibrated.reserved
        if not self.is_capped:
            return low, high
        capped = self.predicted["dry-run"]
        return min(low, round(capped * (1 - RUN_TO_RUN))), max(high, round(capped * (1 + RUN_TO_RUN)))

    @property
    def is_covered(self) -> bool:
        """Tell whether the measured peak lies in the calibrated interval."""
        low, high = self.interval_bytes
        return low <= self.measured_bytes <= high

    @property
    def is_reserved_covered(self) -> bool | None:
        """Tell whether the measured reserved peak lies in its interval; None without one."""
        size, (low, high) = self.observation.peak_reserved_bytes, self.calibrated.reserved
        return None if size is None else low <= size <= high


def grade(
    evidence: Evidence, report: Callable[[float], None] | None = None, library: Library | None = None
) -> list[Graded]:
    """Grade every full run of the evidence that the memory programs can play, newest first.

    `report` is told how much is done, 0 to 1. `library` has the programs for runs that met the end of their GPU's
    memory, the shipped ones where it is None.
    """
    families = sorted({family_of(one.capability) for one in evidence.observations})
    found: dict[str, Graded] = {}
    for index, family in enumerate(families):

        def part(done: float, index: int = index) -> None:
            if report:
                report((index + done) / len(families))

        part(0.0)
        runs = evidence.with_curves(evidence.of_family(family))
        said = held_out(runs, part)
        found |= {
            run_id: _graded(run, said[run_id], library) for run in runs if (run_id := run.observation.run_id) in said
        }
    return [found[one.run_id] for one in evidence.observations if one.run_id in found]


@dataclass(frozen=True, eq=False)
class Uncorrected:
    """The predictions of one full run that rest on no other run, those of the formula and of the dry run. Bytes.

    `peak` and `measured_bytes` are as in `Graded`. `reserved_bytes` is the dry run's reserved peak, `stages` its
    allocated peaks. `capped` has the peaks within the GPU's memory where the run met its end, else None.
    """

    peak: Peak
    measured_bytes: int
    predicted: dict[str, int]
    reserved_bytes: int
    stages: dict[str, int]
    capped: Peaks | None

    def error(self, basis: str) -> float:
        """Compute ``predicted / measured - 1``: negative is a prediction that was too low."""
        return self.predicted[basis] / self.measured_bytes - 1


def uncorrected(run: Run, library: Library | None = None) -> Uncorrected:
    """Predict a full run without the help of other runs.

    `library` is that of `grade`.
    """
    observation = run.observation
    stages = {stage: round(float(curve[PREFERRED])) for stage, curve in run.curve.stages.items()}
    allocated, reserved = max(stages.values()), round(float(run.curve.reserved[PREFERRED]))
    capped = _capped(observation, reserved, library or shipped())
    if capped is not None:
        allocated, reserved = capped.allocated_bytes, capped.reserved_bytes
    peak: Peak = "allocated" if observation.peak_allocated_bytes else "reserved"
    measured = observation.peak_allocated_bytes or observation.peak_reserved_bytes
    assert measured is not None, "a run without a peak was graded"
    dry_run = allocated if peak == "allocated" else reserved
    return Uncorrected(
        peak=peak,
        measured_bytes=measured,
        predicted={"formula": _formula_bytes(observation, peak), "dry-run": dry_run},
        reserved_bytes=reserved,
        stages=stages,
        capped=capped,
    )


def _graded(run: Run, said: Calibrated, library: Library | None) -> Graded:
    observation, raw = run.observation, uncorrected(run, library)
    corrected = {stage: round(size) for stage, size in said.stages.items()}
    allocated, reserved = round(said.allocated_bytes), round(said.reserved_bytes)
    if raw.capped is not None:
        allocated, reserved = raw.capped.allocated_bytes, raw.capped.reserved_bytes
    return Graded(
        observation=observation,
        peak=raw.peak,
        measured_bytes=raw.measured_bytes,
        predicted=raw.predicted | {"calibrated": allocated if raw.peak == "allocated" else reserved},
        reserved={"dry-run": raw.reserved_bytes, "calibrated": reserved},
        calibrated=said,
        stages={
            stage: (size, raw.stages[stage], corrected[stage])
            for stage, size in observation.stages.items()
            if stage in raw.stages
        },
        is_capped=raw.capped is not None,
    )


def _capped(observation: Observation, reserved_bytes: int, library: Library) -> Peaks | None:
    """Replay a run within its GPU's memory where that has no room for what preferred kernels reserve.

    Such a run takes what the memory leaves, so its peak is compared with that of the replay within it. None where the
    memory has room, where no replay ends well, and for a GPU that the catalogue lacks.
    """
    if observation.gpu is None or not observation.lacks_room_for(reserved_bytes):
        return None
    return peaks_within(observation.request, observation.gpu, library)


def _formula_bytes(observation: Observation, peak: Peak) -> int:
    breakdown = estimate(observation.request)
    if observation.scope != "pipeline":
        return breakdown.stages[STAGE_OF[observation.scope]]
    return breakdown.total_bytes if peak == "reserved" else breakdown.base_bytes + breakdown.activation_bytes


@dataclass(frozen=True)
class Group:
    """Runs alike in one thing: how far off each basis is in the median, how far to one side, how many are covered."""

    name: str
    count: int
    error: dict[str, float]
    bias: dict[str, float]
    covered: float


def group_of(name: str, graded: Sequence[Graded]) -> Group:
    """Sum up at least one run."""
    errors = {basis: [one.error(basis) for one in graded] for basis in GRADED_BASES}
    return Group(
        name=name,
        count=len(graded),
        error={basis: median(map(abs, found)) for basis, found in errors.items()},
        bias={basis: median(found) for basis, found in errors.items()},
        covered=sum(one.is_covered for one in graded) / len(graded),
    )


def groups(graded: Iterable[Graded], key: Callable[[Graded], Hashable]) -> list[Group]:
    """Group runs by `key`, the largest group first."""
    found: dict[Hashable, list[Graded]] = {}
    for one in graded:
        found.setdefault(key(one), []).append(one)
    made = [group_of(str(name), members) for name, members in found.items()]
    return sorted(made, key=lambda group: -group.count)


def size_class(request: GenerationRequest) -> str:
    """Name the size class of the request by the pixels of all its images together."""
    pixels = request.effective_width * request.effective_height * request.batch
    for limit, name in ((0.3, "up to 512×512"), (1.1, "up to 1024×1024"), (4.3, "up to 2048×2048")):
        if pixels <= limit * 1024**2:
            return name
    return "larger"
