"""Raw dry runs and measured runs in, corrected peaks with an interval out.

What is learned is physical: how much of their preferred workspace a card family's convolutions take, and a constant.
Both are learned by stage, from runs of the same family, attention and kernels, each weighed by how alike it is;
`planner/posterior.py` says how, `planner/intervals.py` how wide the interval is.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np

from planner.allocator import LARGE_SEGMENT, MAX_UNSPLIT_BYTES
from planner.cells import Cell
from planner.curves import PREFERRED, Curve
from planner.dryrun import RUN_TO_RUN
from planner.intervals import ALWAYS_ABSURD, MIN_WEIGHT, half_width
from planner.posterior import (
    LOG_EVEN,
    LOG_PRIOR,
    RAW,
    SHAPE,
    Estimate,
    constant_of,
    estimates_of,
    log_likelihood,
    weights_of,
)
from planner.runs import Residual, Run, newest

# A stage so far below the peak cannot become it, and is not looked at again for each run that is left out.
_NEAR = 0.6
# A peak that far from the dry run's is another.
_MOVED = 0.005
# A run that only bounds its peak says half as much as one that tells it.
_BOUND_WEIGHT = 0.5
# What runs reserve beyond what they allocate is corrected where it is off by more than this, and never by more than
# that: segments come in steps.
_RESERVED_MOVED, _RESERVED_MOST = 0.01, float(np.log(1.25))
# Of stages so close to the peak any could be it.
_COULD_BE = 0.95
# The others back the run that pulls hardest where they are so many times more probable with it than with the raw dry
# run, in logarithms.
_BACKED = 1.0
# Up to so many runs each is left out alone, beyond that in so many parts.
_EACH_ALONE = 30
_FOLDS = 5


@dataclass(frozen=True)
class Corrected:
    """Peaks of one request after calibration. Bytes.

    `weight` is how many runs like it the stages that could be the peak rest on, `full` how many of those came to their
    end without meeting their card's; stages that are not `looked_at` are raw, as `raw` is the whole peak.
    """

    stages: dict[str, Estimate]
    reserved: Estimate
    constant: float
    weight: float
    full: float
    looked_at: frozenset[str]
    raw: float

    @property
    def peak_stage(self) -> str:
        """The stage that allocates most, of those looked at; of equal ones the later."""
        seen = [stage for stage in self.stages if stage in self.looked_at]
        return max(reversed(seen), key=lambda stage: self.stages[stage].median)

    @property
    def allocated(self) -> Estimate:
        """The allocated peak."""
        return self.stages[self.peak_stage]


@dataclass(frozen=True)
class Calibrated:
    """`Corrected` with intervals at `intervals.NOMINAL`. Bytes.

    `is_physical` says that there were too few runs for residuals, so that the allocated interval is the whole of what
    convolutions could take. `runs` are the ids of the runs it rests on, `stale` of those among them that are.
    """

    corrected: Corrected
    allocated: tuple[int, int]
    reserved: tuple[int, int]
    is_physical: bool
    runs: tuple[str, ...]
    stale: tuple[str, ...]

    @property
    def has_data(self) -> bool:
        """Whether enough runs like it were measured to be the best answer.

        Runs that only bound their peak are, where they contradict the dry run.
        """
        said = self.corrected
        has_moved = abs(said.allocated.median / said.raw - 1) > _MOVED
        return said.full >= MIN_WEIGHT or (said.weight >= MIN_WEIGHT and has_moved)


class _Likelihood(NamedTuple):
    """A log-likelihood on the grid, of how many runs, and how many of them tell their peak in full."""

    likelihood: np.ndarray
    weight: float
    full: float

    def plus(self, other: _Likelihood, counts: float) -> _Likelihood:
        """With so much of another."""
        return _Likelihood(
            self.likelihood + counts * other.likelihood,
            self.weight + counts * other.weight,
            self.full + counts * other.full,
        )


# What each run says of each of its stages, by ids.
Told = dict[tuple[str, str], _Likelihood]


class Calibration:
    """What the runs say, newest first; beyond `NEWEST` of a cell the older ones are left out.

    `told` is shared by calibrations that have runs in common. A cell is looked at once it is asked for.
    """

    def __init__(self, runs: Iterable[Run], told: Told | None = None):
        self.runs = newest(run for run in runs if run.peak_allocated_bytes is not None)
        self._told = {} if told is None else told
        self._by_cell: dict[Cell, list[Run]] = {}
        for run in self.runs:
            self._by_cell.setdefault(run.cell, []).append(run)
        self._sums: dict[Cell, dict[str, _Likelihood]] = {}
        self._totals: dict[tuple[str, Cell], _Likelihood] = {}
        self._points: dict[tuple[str, Cell], np.ndarray] = {}
        self._spreads: dict[tuple[str, Cell], np.ndarray] = {}
        self._residuals: dict[tuple[Cell, bool], list[Residual]] = {}
        self._left: dict[Cell, tuple[np.ndarray, np.ndarray]] = {}

    def correct(self, curve: Curve, target: Cell, without: Run | None = None) -> Corrected:
        """The peaks of this curve's request, as if `without` had not been measured."""
        most = {stage: float(values.max()) for stage, values in curve.stages.items()}
        highest = max(most.values())
        looked_at = frozenset(stage for stage in most if without is None or most[stage] > _NEAR * highest)
        told = {stage: self._likelihood(stage, target, without) for stage in curve.stages if stage in looked_at}
        points = {stage: self._point(stage, target, of, without) for stage, of in told.items()}

        def estimate(values: np.ndarray, stage: str) -> Estimate:
            if stage not in looked_at:
                return Estimate(*[float(values[PREFERRED])] * 3)
            # How wide it is matters to what is asked for, and not to the residual of a run that is left out.
            if without is not None:
                [said] = estimates_of(values, points[stage])
                return said
            said, even = estimates_of(values, points[stage], self._spread(stage, target))
            return Estimate(said.median, min(said.median, even.low), max(said.median, even.high))

        estimates = {stage: estimate(values, stage) for stage, values in curve.stages.items()}
        near = [stage for stage in estimates if stage in looked_at]
        peak = max(reversed(near), key=lambda stage: estimates[stage].median)
        could_be = [told[stage] for stage in near if estimates[stage].median >= _COULD_BE * estimates[peak].median]
        return Corrected(
            stages=estimates,
            reserved=estimate(curve.reserved, peak),
            constant=constant_of(points[peak]),
            weight=max(of.weight for of in could_be),
            full=max(of.full for of in could_be),
            looked_at=looked_at,
            raw=max(float(values[PREFERRED]) for values in curve.stages.values()),
        )

    def _likelihood(self, stage: str, target: Cell, without: Run | None) -> _Likelihood:
        if (stage, target) not in self._totals:
            total = _Likelihood(np.zeros(SHAPE), 0.0, 0.0)
            for cell in self._by_cell:
                counts = target.weight(cell)
                if counts and stage in self._sums_of(cell):
                    total = total.plus(self._sums_of(cell)[stage], counts)
            self._totals[stage, target] = total
        total = self._totals[stage, target]
        if without is not None and (without.run_id, stage) in self._told:
            total = total.plus(self._told[without.run_id, stage], -target.weight(without.cell))
        return total

    def _point(self, stage: str, target: Cell, told: _Likelihood, without: Run | None) -> np.ndarray:
        """The posterior that the answer is the median of. Fewer runs than three move no answer.

        One that is left out is told what the others say however few they are: raw, its residual would be that of
        another answer than the one that it is the residual of.
        """
        if without is not None:
            return self._believed(stage, target, told, without)
        if (stage, target) not in self._points:
            is_enough = told.weight >= MIN_WEIGHT
            self._points[stage, target] = (
                self._believed(stage, target, told, None) if is_enough else weights_of(LOG_PRIOR)
            )
        return self._points[stage, target]

    def _spread(self, stage: str, target: Cell) -> np.ndarray:
        """The posterior that the answer's width is read off."""
        if (stage, target) not in self._spreads:
            likelihood = self._likelihood(stage, target, None).likelihood
            self._spreads[stage, target] = weights_of(LOG_EVEN + likelihood)
        return self._spreads[stage, target]

    def _believed(self, stage: str, target: Cell, told: _Likelihood, without: Run | None) -> np.ndarray:
        """The posterior, without the run that pulls hardest away from the raw dry run where no other backs it."""
        weights = weights_of(LOG_PRIOR + told.likelihood)
        mode = np.unravel_index(int(np.argmax(weights)), weights.shape)
        if mode == RAW:
            return weights
        pulls = [
            (target.weight(run.cell) * _more_probable(one.likelihood, mode), run)
            for cell, runs in self._by_cell.items()
            if target.weight(cell)
            for run in runs
            if run is not without and (one := self._told.get((run.run_id, stage))) is not None
        ]
        pull, run = max(pulls, key=lambda one: one[0])
        if pull <= 0:
            return weights
        rest = told.plus(self._told[run.run_id, stage], -target.weight(run.cell))
        if _more_probable(rest.likelihood, mode) >= _BACKED:
            return weights
        return weights_of(LOG_PRIOR + rest.likelihood)

    def _sums_of(self, cell: Cell) -> dict[str, _Likelihood]:
        """What the runs of a cell say together, by stage."""
        if cell not in self._sums:
            found: dict[str, _Likelihood] = {}
            for run in self._by_cell[cell]:
                for stage, size, kind in run.told():
                    if (run.run_id, stage) not in self._told:
                        likelihood = log_likelihood(run.curve.stages[stage], size, kind)
                        counts = {"full": 1.0, "at-most": 0.0}.get(kind, _BOUND_WEIGHT)
                        self._told[run.run_id, stage] = _Likelihood(likelihood, counts, float(kind == "full"))
                    nothing = _Likelihood(np.zeros(SHAPE), 0.0, 0.0)
                    found[stage] = found.get(stage, nothing).plus(self._told[run.run_id, stage], 1.0)
            self._sums[cell] = found
        return self._sums[cell]

    def residuals(self, target: Cell, *, of_raw: bool = False) -> Iterator[tuple[float, list[Residual]]]:
        """Of the full runs of every cell that counts for `target`, and how much it counts.

        They are from what the other runs say, or from the raw dry run.
        """
        for cell, runs in self._by_cell.items():
            weight = target.weight(cell)
            if weight:
                if (cell, of_raw) not in self._residuals:
                    full = [run for run in runs if run.kind == "full"]
                    self._residuals[cell, of_raw] = [self._residual(run, of_raw) for run in full]
                yield weight, self._residuals[cell, of_raw]

    def _residual(self, run: Run, of_raw: bool) -> Residual:
        said = Calibration(()).correct(run.curve, run.cell) if of_raw else self.correct(run.curve, run.cell, run)
        # Where stages are not known, the whole is off by as much whichever stage it is put down to.
        stages = run.known_stages
        peaks = stages or dict.fromkeys(said.looked_at, run.peak_allocated_bytes or 0)
        of = said.stages if stages else dict.fromkeys(said.looked_at, said.allocated)
        allocated = {
            stage: float(np.log(size / of[stage].median)) for stage, size in peaks.items() if stage in said.looked_at
        }
        reserved = run.peak_reserved_bytes
        off = float(np.log(reserved / said.reserved.median)) if reserved else None
        return Residual(run.cell, said.peak_stage, allocated, off)

    def answer(self, curve: Curve, target: Cell) -> Calibrated:
        """The corrected peaks of this curve's request, with intervals."""
        said = self.correct(curve, target)
        stage = said.peak_stage
        # Of a stage that too few runs tell of the answer is the raw dry run, and so are its residuals from that.
        is_raw = self._likelihood(stage, target, None).weight < MIN_WEIGHT
        allocated = self._off(target, "allocated", stage, is_raw)
        reserved = self._off(target, "reserved", stage, is_raw)
        # Less than without any workspace is not what is left over of a fraction that was mistaken.
        least = max(float(curve.reserved.min()) + min(said.constant, 0.0), 1.0)
        shift = 0.0 if is_raw else max(_shift(*self._left_over(target)), min(np.log(least / said.reserved.median), 0.0))
        said = replace(said, reserved=Estimate(*(float(np.exp(shift)) * end for end in said.reserved)))
        width = half_width(*allocated)
        # Where what is reserved was not measured, it is as uncertain as what is allocated.
        reserved_width = half_width(reserved[0] - shift, reserved[1])
        if reserved_width is None:
            reserved_width = width
        ends = _interval(said.allocated, curve.stages[stage], width, allocated[0], MAX_UNSPLIT_BYTES)
        reserved_ends = _interval(said.reserved, curve.reserved, reserved_width, reserved[0], LARGE_SEGMENT)
        alike = [(cell, runs) for cell, runs in self._by_cell.items() if target.weight(cell)]
        return Calibrated(
            corrected=said,
            allocated=ends,
            reserved=(max(reserved_ends[0], ends[0]), max(reserved_ends[1], ends[1])),
            is_physical=width is None,
            runs=tuple(run.run_id for _, runs in alike for run in runs),
            stale=tuple(run.run_id for cell, runs in alike if target.is_stale(cell) for run in runs),
        )

    def _left_over(self, target: Cell) -> tuple[np.ndarray, np.ndarray]:
        """What runs reserved beyond what all that was learned says of them, in logarithms, and how much each counts.

        Not of runs left out: what has been learned is corrected already, and must not be corrected once more.
        """
        if target not in self._left:
            told = [
                (float(np.log(run.peak_reserved_bytes / self.correct(run.curve, target).reserved.median)), weight)
                for cell, runs in self._by_cell.items()
                if (weight := target.weight(cell))
                for run in runs
                if run.kind == "full" and run.peak_reserved_bytes
            ]
            residuals, weights = np.array(told).reshape(-1, 2).T
            self._left[target] = residuals, weights
        return self._left[target]

    def _off(self, target: Cell, peak: str, stage: str, of_raw: bool) -> tuple[np.ndarray, np.ndarray]:
        """The residuals that tell of this peak, and how much each counts."""
        told = [
            (residual[0], residual[1] * weight)
            for weight, residuals in self.residuals(target, of_raw=of_raw)
            for one in residuals
            if (residual := one.of(peak, stage))
        ]
        residuals, weights = np.array(told).reshape(-1, 2).T
        return residuals, weights


def _more_probable(likelihood: np.ndarray, mode: tuple[np.intp, ...]) -> float:
    """By how much runs are more probable there than with the raw dry run, each at the noise that suits it best."""
    return float(likelihood[mode].max() - likelihood[RAW].max())


def _shift(residuals: np.ndarray, weights: np.ndarray) -> float:
    """By how much what runs reserve is off in the median, where it is off by more than segments come to.

    Downward by no more than three in four of them are: that a card needs less must not be the noise of a few.
    """
    if weights.sum() < MIN_WEIGHT:
        return 0.0
    order = np.argsort(residuals)
    reached = np.cumsum(weights[order])
    at = np.searchsorted(reached, np.array([0.5, 0.75]) * reached[-1])
    middle, upper = residuals[order][at]
    shift = middle if middle > 0 else min(upper, 0.0)
    return float(np.clip(shift, -_RESERVED_MOST, _RESERVED_MOST)) if abs(shift) > _RESERVED_MOVED else 0.0


def _interval(
    estimate: Estimate, curve: np.ndarray, width: float | None, residuals: np.ndarray, grain: float
) -> tuple[int, int]:
    """The ends between which the peak is to be expected.

    A block may count beyond its request, and what is reserved moves in segments: no residual shows less than `grain`.
    Nor does one run repeat another to less than `RUN_TO_RUN`.
    """
    if width is None:
        seen = estimate.median * np.exp([0.0, *residuals[np.abs(residuals) <= ALWAYS_ABSURD]])
        low, high = min(curve.min(), seen.min()), max(curve.max(), seen.max())
    else:
        # What is not known of the kernels weighs more on another size than on those that were measured.
        below, above = (abs(np.log(end / estimate.median)) for end in (estimate.low, estimate.high))
        low = estimate.median * np.exp(-np.hypot(width, below))
        high = estimate.median * np.exp(np.hypot(width, above))
    grain = max(grain, RUN_TO_RUN * estimate.median)
    low, high = min(low, estimate.median - grain), max(high, estimate.median + grain)
    return max(0, round(float(low))), round(float(high))


def held_out(runs: Sequence[Run], report: Callable[[float], None] | None = None) -> dict[str, Calibrated]:
    """What is said of each full run by those outside its fold, by run id: no run is graded on itself.

    Up to thirty runs each is a fold of its own, beyond that there are five. `report` is told how much is done, 0 to 1.
    """
    full = [run for run in runs if run.kind == "full"]
    count = len(full) if len(full) <= _EACH_ALONE else _FOLDS
    told: Told = {}
    found = {}
    for fold in range(count):
        if report:
            report(fold / count)
        graded = full[fold::count]
        ids = {run.run_id for run in graded}
        rest = Calibration((run for run in runs if run.run_id not in ids), told)
        # Runs of one request on one kind of card are answered alike.
        said: dict[tuple[int, Cell], Calibrated] = {}
        for run in graded:
            key = (id(run.curve), run.cell)
            if key not in said:
                said[key] = rest.answer(run.curve, run.cell)
            found[run.run_id] = said[key]
    return found
