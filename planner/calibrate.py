"""Raw dry runs and measured runs in, corrected peaks with an interval out.

What is learned is physical: how much of their preferred workspace a card family's convolutions take, and a constant.
Both are learned by stage, from runs of the same family, attention and kernels, each weighed by how alike it is;
`planner/posterior.py` says how, `planner/intervals.py` how wide the interval is.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol, TypeVar

import numpy as np

from planner.allocator import LARGE_SEGMENT, MAX_UNSPLIT_BYTES
from planner.cells import Cell
from planner.curves import PREFERRED, Curve
from planner.intervals import MIN_WEIGHT, half_width
from planner.posterior import LOG_PRIOR, SHAPE, Estimate, Kind, constant_of, estimate_of, log_likelihood, weights_of

# A residual of a run that peaks in another stage tells less of this one.
OTHER_STAGE = 0.3
# A stage so far below the peak cannot become it, and is not looked at again for each run that is left out.
_NEAR = 0.6
# Of stages so close to the peak any could be it.
_COULD_BE = 0.95
# Up to so many runs each is left out alone, beyond that in so many parts.
_EACH_ALONE = 30
_FOLDS = 5
# As many of the newest runs of each kind say as much as all of them.
NEWEST = 50


@dataclass(frozen=True, kw_only=True, eq=False)
class Run:
    """A measured run as calibration sees it. Bytes; `stages` are allocated peaks, none where only the whole is known.

    Of a half of the VAE alone, peaks and curve are above what stood before.
    """

    run_id: str
    cell: Cell
    curve: Curve
    kind: Kind = "full"
    peak_allocated_bytes: int
    peak_reserved_bytes: int | None = None
    stages: Mapping[str, int]

    def told(self) -> Iterator[tuple[str, int, Kind]]:
        """Stage, bytes, and what they say of its peak; the whole's is the peak of the stage that should have it."""
        if self.stages:
            for stage, size in self.stages.items():
                if stage in self.curve.stages:
                    yield stage, size, self.kind
            return
        for stage in self.curve.stages:
            is_peak = stage == self.curve.peak_stage
            if is_peak or self.kind == "full":
                yield stage, self.peak_allocated_bytes, self.kind if is_peak else "at-most"


@dataclass(frozen=True)
class Corrected:
    """Peaks of one request after calibration. Bytes.

    `weight` is how many runs like it the stages that could be the peak rest on; those not `looked_at` are raw.
    """

    stages: dict[str, Estimate]
    reserved: Estimate
    constant: float
    weight: float
    looked_at: frozenset[str]

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
        """Whether enough runs like it were measured to be the best answer."""
        return self.corrected.weight >= MIN_WEIGHT


class Residual(NamedTuple):
    """By how much a run was off from what the others said of it: logarithms of measured over corrected.

    `allocated` is by stage, of those that could have been the peak; `reserved` is None where it was not measured.
    """

    cell: Cell
    peak_stage: str
    allocated: dict[str, float]
    reserved: float | None

    def of(self, peak: str, stage: str) -> tuple[float, float] | None:
        """The residual that tells of this peak, ``allocated`` or ``reserved``, and how much it counts."""
        if peak == "reserved":
            return None if self.reserved is None else (self.reserved, 1.0)
        if stage in self.allocated:
            return self.allocated[stage], 1.0
        return (self.allocated[self.peak_stage], OTHER_STAGE) if self.peak_stage in self.allocated else None


# What each run says of each of its stages, by ids: its log-likelihood, and whether it is the whole truth.
Told = dict[tuple[str, str], tuple[np.ndarray, bool]]


class Calibration:
    """What the runs say, newest first; beyond `NEWEST` of a cell the older ones are left out.

    `told` is shared by calibrations that have runs in common. A cell is looked at once it is asked for.
    """

    def __init__(self, runs: Iterable[Run], told: Told | None = None):
        self.runs = newest(runs)
        self._told = {} if told is None else told
        self._by_cell: dict[Cell, list[Run]] = {}
        for run in self.runs:
            self._by_cell.setdefault(run.cell, []).append(run)
        self._sums: dict[Cell, dict[str, tuple[np.ndarray, int]]] = {}
        self._residuals: dict[Cell, list[Residual]] = {}

    def correct(self, curve: Curve, target: Cell, without: Run | None = None) -> Corrected:
        """The peaks of this curve's request, as if `without` had not been measured."""
        most = {stage: float(values.max()) for stage, values in curve.stages.items()}
        highest = max(most.values())
        looked_at = frozenset(stage for stage in most if without is None or most[stage] > _NEAR * highest)
        posteriors = {stage: self._posterior(stage, target, without) for stage in curve.stages if stage in looked_at}
        # Fewer runs than this move nothing: one of them could be the absurd one.
        weights = {
            stage: weights_of(log_posterior if weight >= MIN_WEIGHT else LOG_PRIOR)
            for stage, (log_posterior, weight) in posteriors.items()
        }
        estimates = {
            stage: estimate_of(values, weights[stage])
            if stage in looked_at
            else Estimate(*[float(values[PREFERRED])] * 3)
            for stage, values in curve.stages.items()
        }
        peak = max(
            (stage for stage in reversed(list(estimates)) if stage in looked_at), key=lambda s: estimates[s].median
        )
        least = _COULD_BE * estimates[peak].median
        return Corrected(
            stages=estimates,
            reserved=estimate_of(curve.reserved, weights[peak]),
            constant=constant_of(weights[peak]),
            weight=max(weight for stage, (_, weight) in posteriors.items() if estimates[stage].median >= least),
            looked_at=looked_at,
        )

    def _posterior(self, stage: str, target: Cell, without: Run | None) -> tuple[np.ndarray, float]:
        total, weight = LOG_PRIOR, 0.0
        for cell in self._by_cell:
            counts = target.weight(cell)
            if counts and stage in self._sums_of(cell):
                told, count = self._sums_of(cell)[stage]
                total = total + counts * told
                weight += counts * count
        if without is not None and (without.run_id, stage) in self._told:
            counts, (told, is_full) = target.weight(without.cell), self._told[without.run_id, stage]
            total = total - counts * told
            weight -= counts * is_full
        return total, weight

    def _sums_of(self, cell: Cell) -> dict[str, tuple[np.ndarray, int]]:
        """What the runs of a cell say together, by stage, and how many of them say it in full."""
        if cell not in self._sums:
            found: dict[str, tuple[np.ndarray, int]] = {}
            for run in self._by_cell[cell]:
                for stage, size, kind in run.told():
                    if (run.run_id, stage) not in self._told:
                        likelihood = log_likelihood(run.curve.stages[stage], size, kind)
                        self._told[run.run_id, stage] = likelihood, kind == "full"
                    likelihood, is_full = self._told[run.run_id, stage]
                    before, count = found.get(stage, (np.zeros(SHAPE), 0))
                    found[stage] = before + likelihood, count + is_full
            self._sums[cell] = found
        return self._sums[cell]

    def residuals(self, target: Cell) -> Iterator[tuple[float, list[Residual]]]:
        """Of the full runs of every cell that counts for `target`, from what the others say, and how much it counts."""
        for cell, runs in self._by_cell.items():
            weight = target.weight(cell)
            if weight:
                if cell not in self._residuals:
                    self._residuals[cell] = [self._residual(run) for run in runs if run.kind == "full"]
                yield weight, self._residuals[cell]

    def _residual(self, run: Run) -> Residual:
        said = self.correct(run.curve, run.cell, without=run)
        # Where stages are not known, the whole is off by as much whichever stage it is put down to.
        peaks = run.stages or dict.fromkeys(said.looked_at, run.peak_allocated_bytes)
        of = said.stages if run.stages else dict.fromkeys(said.looked_at, said.allocated)
        allocated = {
            stage: float(np.log(size / of[stage].median)) for stage, size in peaks.items() if stage in said.looked_at
        }
        reserved = run.peak_reserved_bytes
        off = float(np.log(reserved / said.reserved.median)) if reserved else None
        return Residual(run.cell, said.peak_stage, allocated, off)

    def answer(self, curve: Curve, target: Cell) -> Calibrated:
        """The corrected peaks of this curve's request, with intervals."""
        said = self.correct(curve, target)
        alike = [(cell, runs) for cell, runs in self._by_cell.items() if target.weight(cell)]
        allocated, is_physical = self._interval("allocated", said, curve.stages[said.peak_stage], target)
        reserved, _ = self._interval("reserved", said, curve.reserved, target)
        return Calibrated(
            corrected=said,
            allocated=allocated,
            reserved=(max(reserved[0], allocated[0]), max(reserved[1], allocated[1])),
            is_physical=is_physical,
            runs=tuple(run.run_id for _, runs in alike for run in runs),
            stale=tuple(run.run_id for cell, runs in alike if target.is_stale(cell) for run in runs),
        )

    def _interval(self, peak: str, said: Corrected, curve: np.ndarray, target: Cell) -> tuple[tuple[int, int], bool]:
        estimate: Estimate = getattr(said, peak)
        stage = said.peak_stage
        told = [
            (residual[0], residual[1] * weight)
            for weight, residuals in self.residuals(target)
            for one in residuals
            if (residual := one.of(peak, stage))
        ]
        residuals, weights = np.array(told).reshape(-1, 2).T
        width = half_width(residuals, weights)
        # A block may count beyond its request, and what is reserved moves in segments: no residual shows less.
        grain = MAX_UNSPLIT_BYTES if peak == "allocated" else LARGE_SEGMENT
        if width is None:
            seen = estimate.median * np.exp([0.0, *residuals])
            low, high = min(curve.min(), seen.min()), max(curve.max(), seen.max())
        else:
            # What is not known of the kernels weighs more on another size than on those that were measured.
            below, above = (abs(np.log(end / estimate.median)) for end in (estimate.low, estimate.high))
            low = estimate.median * np.exp(-np.hypot(width, below))
            high = estimate.median * np.exp(np.hypot(width, above))
        ends = min(low, estimate.median - grain), max(high, estimate.median + grain)
        return (max(0, round(float(ends[0]))), round(float(ends[1]))), width is None


class InCell(Protocol):
    """Anything that has a cell."""

    @property
    def cell(self) -> Cell:
        """What it is alike to."""
        ...


T = TypeVar("T", bound=InCell)


def newest(runs: Iterable[T]) -> list[T]:
    """Of runs, newest first, the first `NEWEST` of each cell."""
    kept: list[T] = []
    counts: dict[Cell, int] = {}
    for run in runs:
        counts[run.cell] = counts.get(run.cell, 0) + 1
        if counts[run.cell] <= NEWEST:
            kept.append(run)
    return kept


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
