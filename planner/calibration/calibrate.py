"""Correct raw dry runs by measured runs, with an interval.

Each stage's allocated peak, and the reserved peak, has a posterior of its own (`planner/calibration/posterior.py`),
from runs of the same family, attention and kernels, each weighted by how alike it is
(`planner/calibration/similarity.py`).
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from planner.calibration.posterior import (
    CONSTANTS,
    LOG_EVEN,
    LOG_PRIOR,
    NOISE,
    SHAPE,
    grid_peaks,
    normalized,
    quantiles,
)
from planner.calibration.runs import Run, newest
from planner.calibration.similarity import MIN_WEIGHT, Traits
from planner.calibration.workspace_curve import PREFERRED, Curve
from planner.replay.allocator import LARGE_SEGMENT, MAX_UNSPLIT_BYTES
from planner.replay.assumptions import RUN_TO_RUN

# The share of runs that an interval should contain, and the standard deviations of noise that contain as many.
NOMINAL = 0.9
_DEVIATIONS = 1.645
_ENDS = ((1 - NOMINAL) / 2, (1 + NOMINAL) / 2)
# Up to this many runs are left out one by one, more in this many parts.
_ONE_BY_ONE, _PARTS = 30, 5


class _Belief(NamedTuple):
    """The posterior of one peak: of its point and of its interval, (fractions, constants) each.

    `weight` is how many runs just like the target it rests on, `noise` the expected relative noise of a run.
    """

    weight: float
    point: np.ndarray
    spread: np.ndarray
    noise: float

    def estimate(self, curve: np.ndarray) -> float:
        """Compute the point estimate of a peak with this curve.

        It is the raw dry run where runs are too few.
        """
        if self.weight < MIN_WEIGHT:
            return float(curve[PREFERRED])
        return quantiles(grid_peaks(curve), self.point, (0.5,))[0]

    def interval(self, curve: np.ndarray, grain: int) -> tuple[int, int]:
        """Compute the interval of a peak with this curve, in whole bytes.

        With too few runs it also spans all fractions of the workspace. It reaches at least `grain` bytes and
        `RUN_TO_RUN` to either side of the estimate.
        """
        point = self.estimate(curve)
        low, high = quantiles(grid_peaks(curve), self.spread, _ENDS)
        if self.weight < MIN_WEIGHT:
            low, high = min(low, float(curve.min())), max(high, float(curve.max()))
        noise = float(np.exp(_DEVIATIONS * self.noise))
        least = max(grain, RUN_TO_RUN * point)
        return max(0, round(min(low / noise, point - least))), round(max(high * noise, point + least))


@dataclass(frozen=True)
class Calibrated:
    """The peaks of one request after calibration. Bytes.

    `stages` are allocated peaks. `allocated` and `reserved` are intervals at `NOMINAL` of the two peaks. `constant` is
    what was learned beside the workspace. `weight` is how many runs just like it the peak's stage rests on. `runs` are
    the ids of the runs that were used, `stale` of those among them with other versions.
    """

    stages: dict[str, float]
    reserved_bytes: float
    allocated: tuple[int, int]
    reserved: tuple[int, int]
    constant: float
    weight: float
    runs: tuple[str, ...]
    stale: tuple[str, ...]

    @property
    def peak_stage(self) -> str:
        """Find the stage that allocates most; of equal ones the later."""
        return max(reversed(self.stages), key=lambda stage: self.stages[stage])

    @property
    def allocated_bytes(self) -> float:
        """Return the allocated peak."""
        return self.stages[self.peak_stage]

    @property
    def has_data(self) -> bool:
        """Tell whether runs were enough to correct the dry run.

        Otherwise the sizes are those of the raw dry run.
        """
        return self.weight >= MIN_WEIGHT


class Calibration:
    """The runs that correct dry runs.

    The posterior of a peak is computed when it is first asked for.
    """

    def __init__(self, runs: Iterable[Run]):
        self.runs = tuple(run for run in runs if run.calibrates)
        self._known: dict[tuple[str, Traits], _Belief] = {}

    def _belief(self, peak: str, target: Traits) -> _Belief:
        """Compute the posterior of a stage's allocated peak, or of the ``reserved`` peak, for a target."""
        if (peak, target) not in self._known:
            weight, likelihood = 0.0, np.zeros(SHAPE)
            for run in self.runs:
                counts = target.weight(run.observation.traits)
                if counts and peak in run.likelihoods:
                    weight += counts
                    likelihood += counts * run.likelihoods[peak]
            spread = normalized(LOG_EVEN + likelihood)
            noise = float(spread.sum(axis=(0, 1)) @ NOISE)
            point = normalized(LOG_PRIOR + likelihood).sum(axis=2)
            self._known[peak, target] = _Belief(weight, point, spread.sum(axis=2), noise)
        return self._known[peak, target]

    def answer(self, curve: Curve, target: Traits) -> Calibrated:
        """Correct the peaks of this curve's request, on what `target` describes."""
        beliefs = {stage: self._belief(stage, target) for stage in curve.stages}
        stages = {stage: beliefs[stage].estimate(values) for stage, values in curve.stages.items()}
        peak_stage = max(reversed(stages), key=lambda stage: stages[stage])
        belief = beliefs[peak_stage]
        of_reserved = self._belief("reserved", target)
        if of_reserved.weight < MIN_WEIGHT:
            of_reserved = belief
        allocated = belief.interval(curve.stages[peak_stage], MAX_UNSPLIT_BYTES)
        reserved = of_reserved.interval(curve.reserved, LARGE_SEGMENT)
        has_data = belief.weight >= MIN_WEIGHT
        used = [run for run in self.runs if target.weight(run.observation.traits)]
        return Calibrated(
            stages=stages,
            reserved_bytes=max(of_reserved.estimate(curve.reserved), stages[peak_stage]),
            allocated=allocated,
            reserved=(max(reserved[0], allocated[0]), max(reserved[1], allocated[1])),
            constant=quantiles(CONSTANTS, belief.point.sum(axis=0), (0.5,))[0] if has_data else 0.0,
            weight=belief.weight,
            runs=tuple(run.observation.run_id for run in used),
            stale=tuple(run.observation.run_id for run in used if target.is_stale(run.observation.traits)),
        )


def held_out(runs: Sequence[Run], report: Callable[[float], None] | None = None) -> dict[str, Calibrated]:
    """Answer for each run by the others, by run id: no run is graded on itself.

    The newest runs are left out one by one or, where there are many, in five parts; older ones calibrate nothing and
    are answered by all of the newest. `report` is told how much is done, 0 to 1.
    """
    ids = {one.run_id for one in newest(run.observation for run in runs if run.calibrates)}
    kept = [run for run in runs if run.observation.run_id in ids]
    count = len(kept) if len(kept) <= _ONE_BY_ONE else _PARTS
    parts = [kept[part::count] for part in range(count)] + [[run for run in runs if run.observation.run_id not in ids]]
    found = {}
    for done, part in enumerate(parts):
        if report:
            report(done / len(parts))
        left_out = {run.observation.run_id for run in part}
        rest = Calibration(run for run in kept if run.observation.run_id not in left_out)
        # Runs of one request on one kind of GPU have the same answer.
        answers: dict[tuple[int, Traits], Calibrated] = {}
        for run in part:
            key = (id(run.curve), run.observation.traits)
            if key not in answers:
                answers[key] = rest.answer(run.curve, run.observation.traits)
            found[run.observation.run_id] = answers[key]
    return found
