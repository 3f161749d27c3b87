"""Measured runs as calibration sees them, and by how much each was off."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import NamedTuple, Protocol, TypeVar

from planner.cells import Cell, Kind
from planner.curves import Curve
from planner.request import GenerationRequest

# A residual of a run that peaks in another stage tells less of this one.
OTHER_STAGE = 0.3
# As many of the newest runs of a cell, and of one request in it, say as much as all of them; runs that met the end of
# their card are counted by themselves.
NEWEST, NEWEST_OF_REQUEST = 50, 10
# The stages' peaks were reset at other moments than the whole's, which no more than this comes of.
_REACHED = 0.99


@dataclass(frozen=True, kw_only=True, eq=False)
class Run:
    """A measured run as calibration sees it. Bytes; `stages` are allocated peaks, none where only the whole is known.

    `peak_allocated_bytes` is None where only the reserved peak was published: such a run calibrates nothing.

    Of a half of the VAE alone, peaks and curve are above what stood before.
    """

    run_id: str
    request: GenerationRequest
    cell: Cell
    curve: Curve
    kind: Kind = "full"
    peak_allocated_bytes: int | None
    peak_reserved_bytes: int | None = None
    stages: Mapping[str, int]

    @property
    def known_stages(self) -> Mapping[str, int]:
        """The stages, if one of them reaches the whole's peak; else some are lacking, and only the whole is known."""
        if not self.stages or max(self.stages.values()) < _REACHED * (self.peak_allocated_bytes or 0):
            return {}
        return self.stages

    def told(self) -> Iterator[tuple[str, int, Kind]]:
        """Stage, bytes, and what they say of its peak; the whole's is the peak of the stage that should have it."""
        if self.known_stages:
            for stage, size in self.known_stages.items():
                if stage in self.curve.stages:
                    yield stage, size, self.kind
            return
        if self.peak_allocated_bytes is None:
            return
        for stage in self.curve.stages:
            is_peak = stage == self.curve.peak_stage
            if is_peak or self.kind == "full":
                yield stage, self.peak_allocated_bytes, self.kind if is_peak else "at-most"


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


class Kept(Protocol):
    """Anything that is a run."""

    @property
    def cell(self) -> Cell:
        """What it is alike to."""
        ...

    @property
    def kind(self) -> Kind:
        """What it says of its peak."""
        ...

    @property
    def request(self) -> GenerationRequest:
        """What was asked for."""
        ...


T = TypeVar("T", bound=Kept)


def newest(runs: Iterable[T]) -> list[T]:
    """Of runs, newest first, the first `NEWEST` of each cell, and `NEWEST_OF_REQUEST` of one request in it."""
    kept: list[T] = []
    counts: dict[tuple, int] = {}
    for run in runs:
        of_cell = (run.cell, run.kind == "full")
        of_request = (*of_cell, run.request)
        if counts.get(of_cell, 0) < NEWEST and counts.get(of_request, 0) < NEWEST_OF_REQUEST:
            kept.append(run)
            for key in (of_cell, of_request):
                counts[key] = counts.get(key, 0) + 1
    return kept
