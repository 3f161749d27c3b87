"""Gather measured runs as evidence: those of the history's file and those that ship."""

import sqlite3
from functools import cache
from operator import attrgetter
from pathlib import Path
from typing import NamedTuple

from cache.history.curves import CurveStore
from cache.history.location import HistoryError, default_path
from cache.history.reader import opened, runs_in
from cache.history.schema import check_newer
from cache.machine.device import allocator_environment
from cache.machine.versions import planned_for
from cache.records import METHOD, Environment, Measured, Measurement
from planner.calibration.evidence import Evidence
from planner.calibration.runs import Observation
from planner.calibration.similarity import ATTENTION, Kind
from planner.components import LIBRARIES
from planner.programs.library import Library
from planner.request import GenerationRequest
from planner.units import GIB

# A GPU of which more than this was not free when a run began was shared: the CUDA context and what the driver keeps
# take less.
_NOT_FREE_BYTES = 2 * GIB
_versions_of = attrgetter(*LIBRARIES)


class Gathered(NamedTuple):
    """The evidence, and what the user must know of the history it comes from, or None."""

    evidence: Evidence
    notice: str | None


@cache
def _releases_text(*versions: str | None) -> str:
    """Write these releases of `LIBRARIES` as text, by which runs are compared."""
    releases = [(version or "unknown").partition("+")[0] for version in versions]
    return ", ".join(f"{name} {release}" for name, release in zip(LIBRARIES, releases, strict=True))


@cache
def _major(cudnn: str | None) -> int | None:
    """Read the major version of cuDNN, which torch writes as 91002 for 9.10.2 and as 8907 for 8.9.7."""
    if cudnn is None or not cudnn.isdecimal():
        return None
    number = int(cudnn)
    return number // 10_000 if number >= 90_000 else number // 1000


@cache
def _capability(text: str | None) -> tuple[int, int] | None:
    major, dot, minor = (text or "").partition(".")
    return (int(major), int(minor)) if dot and major.isdecimal() and minor.isdecimal() else None


def _kind(measured: Measured) -> Kind:
    if measured.outcome == "out-of-memory":
        return "out-of-memory"
    return "limited" if measured.num_alloc_retries else "full"


def _is_alone(run: Measurement) -> bool:
    """Tell whether a run had its GPU to itself.

    The end of an emulated capacity is not the GPU's own.
    """
    if run.holders or run.environment.emulated_bytes is not None:
        return False
    free_bytes, total_bytes = run.measured.free_before_bytes, run.environment.total_bytes
    return free_bytes is None or total_bytes is None or free_bytes > total_bytes - _NOT_FREE_BYTES


def _ran_as_asked(request: GenerationRequest, environment: Environment) -> bool:
    """Tell whether a run on a GPU had what its request asks for.

    That is its data type, its allocator and its attention processor. Published runs of another processor than the
    default have it in their environment alone.
    """
    expandable = " ".join(f"{name}={value}" for name, value in allocator_environment(request, {}).items())
    return (
        environment.dtype == request.dtype
        and environment.allocator_settings == expandable
        and request.attention in (ATTENTION, environment.attention)
    )


def observation_of(run: Measurement) -> Observation | None:
    """Turn a kept run into the planner's value for it.

    The value is None where it tells nothing of a GPU's memory.
    """
    measured, environment = run.measured, run.environment
    capability = _capability(environment.compute_capability)
    is_usual = _ran_as_asked(run.request, environment) and environment.method == METHOD
    if environment.device_kind != "cuda" or capability is None or not is_usual:
        return None
    has_peak = measured.peak_allocated_bytes or measured.peak_reserved_bytes
    if measured.outcome not in ("ok", "out-of-memory") or not has_peak:
        return None
    return Observation(
        run_id=run.measurement_id,
        created_at=run.created_at,
        request=run.request,
        scope=run.scope,
        card=environment.card,
        capability=capability,
        # An attention processor that the request names already makes runs unlike others.
        attention=ATTENTION if environment.attention == run.request.attention else environment.attention,
        cudnn=_major(environment.cudnn),
        versions=_releases_text(*_versions_of(environment)),
        kind=_kind(measured),
        peak_allocated_bytes=measured.peak_allocated_bytes,
        peak_reserved_bytes=measured.peak_reserved_bytes,
        context_bytes=measured.context_bytes,
        num_alloc_retries=measured.num_alloc_retries or 0,
        stages={stage.stage: stage.peak_allocated_bytes for stage in measured.stages if stage.peak_allocated_bytes},
        ended_in=measured.ended_in,
        is_alone=_is_alone(run),
        emulated_bytes=environment.emulated_bytes,
        total_bytes=environment.total_bytes,
        is_reference=run.origin == "reference",
    )


def _history(path: Path) -> list[Observation]:
    with opened(path) as db:
        check_newer(db, path)
        # An older schema lacks these: it is migrated before it is read.
        db.execute("select 1 from curves limit 1")
        db.execute("select emulated_bytes from environments limit 1")
        try:
            return _observations_in(db)
        except sqlite3.OperationalError:
            # A byte that is no text must not cost the whole history. Decoding here takes longer.
            db.text_factory = lambda raw: raw.decode("utf-8", "replace")
            return _observations_in(db)


def _observations_in(db: sqlite3.Connection) -> list[Observation]:
    runs = runs_in(db, "e.device_kind = 'cuda'", with_predictions=False, skip_broken=True)
    return [one for run in runs if (one := observation_of(run))]


def _read(path: Path) -> tuple[list[Observation], str | None]:
    """Read the history's runs, with a notice where the file was damaged.

    An older file is migrated first, a damaged one is set aside.

    Raises:
        HistoryError: the file cannot be read after that either.
    """
    try:
        return _history(path), None
    except sqlite3.Error:
        from cache.history.store import Store

        aside = Store(path).moved_aside
    notice = f"the history was damaged and was set aside as {aside}; a new one was started" if aside else None
    try:
        return _history(path), notice
    except sqlite3.Error as error:
        raise HistoryError(f"the history {path} cannot be read ({error}) - see 'python -m planner doctor'") from error


def gather(library: Library | None, *, with_reference: bool = True, path: Path | None = None) -> Gathered:
    """Gather the history's runs and, unless switched off, the reference runs.

    A history that cannot be used is a notice and not an error, since a plan stands without it. Without a library no
    dry run is corrected, and a request that was measured is still answered from its own runs.
    """
    observations: list[Observation] = []
    notice, where = None, None
    try:
        where = path or default_path()
        if where.exists():
            observations, notice = _read(where)
    except HistoryError as error:
        # Curves are kept in no file that was refused.
        notice, where = str(error), None
    if with_reference:
        from cache.history.reference import reference_runs

        # A reference run that was also imported counts once.
        known = {one.run_id for one in observations}
        shipped = (one for run in reference_runs() if (one := observation_of(run)))
        observations += [one for one in shipped if one.run_id not in known]
    today = planned_for()
    versions = _releases_text(*(today[name] for name in LIBRARIES))
    return Gathered(Evidence(observations, CurveStore(library, where).curves_of, versions), notice)
