"""Measured runs as calibration uses them: the peaks that a run came to, and the curve they are compared with."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Protocol, TypeVar

import numpy as np

from planner.calibration.posterior import log_likelihood
from planner.calibration.similarity import Cell
from planner.calibration.workspace_curve import Curve
from planner.request import GenerationRequest

# The newest runs of a cell, and of one request in it, that calibrate: more would add little and cost time.
NEWEST, NEWEST_OF_REQUEST = 50, 10
# Stages are reset at other moments than the whole's peak, which explains no more than this.
_REACHED = 0.99


@dataclass(frozen=True, kw_only=True, eq=False)
class Run:
    """One run that came to its end without allocator retries. Bytes.

    `stages` are allocated peaks by stage, empty where only the whole is known. `peak_allocated_bytes` is None where
    only the reserved peak was published. A run that does not `calibrates` is graded alone. Of a half of the VAE
    alone, peaks and curve are above what was allocated before.
    """

    run_id: str
    request: GenerationRequest
    cell: Cell
    curve: Curve
    peak_allocated_bytes: int | None
    peak_reserved_bytes: int | None = None
    stages: Mapping[str, int]
    calibrates: bool = True

    @cached_property
    def likelihoods(self) -> dict[str, np.ndarray]:
        """Compute the log-likelihood of each measured peak, by stage and ``reserved``; see `log_likelihood`."""
        if self.peak_allocated_bytes is None:
            return {}
        stages = self.stages
        if not stages or max(stages.values()) < _REACHED * self.peak_allocated_bytes:
            # The stage that peaked is lacking, so the whole's peak is that of the stage that should have it.
            stages = {self.curve.peak_stage: self.peak_allocated_bytes}
        found = {
            stage: log_likelihood(values, stages[stage])
            for stage, values in self.curve.stages.items()
            if stage in stages
        }
        if self.peak_reserved_bytes:
            found["reserved"] = log_likelihood(self.curve.reserved, self.peak_reserved_bytes)
        return found


class _Kept(Protocol):
    @property
    def cell(self) -> Cell: ...

    @property
    def request(self) -> GenerationRequest: ...


T = TypeVar("T", bound=_Kept)


def newest(runs: Iterable[T]) -> list[T]:
    """Keep, of runs that come newest first, `NEWEST` of each cell and `NEWEST_OF_REQUEST` of each request in it."""
    kept: list[T] = []
    counts: dict[tuple, int] = {}
    for run in runs:
        cell, request = (run.cell,), (run.cell, run.request)
        if counts.get(cell, 0) < NEWEST and counts.get(request, 0) < NEWEST_OF_REQUEST:
            kept.append(run)
            for key in (cell, request):
                counts[key] = counts.get(key, 0) + 1
    return kept
