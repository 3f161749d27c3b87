"""The measured runs that may speak of a request: from the history's file and those that ship.

Read through sqlite3 itself: sqlite-utils brings pandas along, twice the time that a whole ``fit`` takes.
"""

import json
import sqlite3
from collections.abc import Iterable, Iterator, Mapping
from contextlib import closing
from dataclasses import fields
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

from cache.history.curves import CurveStore
from cache.history.location import BUSY_TIMEOUT_S, HistoryError, address, default_path
from cache.machine.versions import planned_for
from cache.records import METHOD, VERSIONS, Measurement
from planner.calibration.evidence import Evidence, Observation
from planner.calibration.similarity import Kind
from planner.errors import InvalidArgument
from planner.programs.library import Library
from planner.request import GenerationRequest
from planner.units import GIB

# A run on a card of which more than this was not free at its start was not alone: the CUDA context and what the
# driver keeps take less.
_NOT_FREE_BYTES = 2 * GIB
_FLAGS = ("safety_checker", "vae_tiling", "vae_slicing", "attention_slicing", "channels_last")
_REQUEST = ", ".join(f"r.{field.name}" for field in fields(GenerationRequest))
_SELECT = f"""
    select m.id, m.created_at, m.outcome, m.ended_in, m.peak_allocated_bytes, m.peak_reserved_bytes, m.context_bytes,
        m.num_alloc_retries, m.free_before_bytes, m.holders, m.request_id, e.card, e.compute_capability, e.total_bytes,
        e.emulated_bytes, e.cudnn, e.attention, {", ".join(f"e.{name}" for name in VERSIONS)}, {_REQUEST},
        (select json_group_object(s.stage, s.peak_allocated_bytes) from stages s where s.measurement_id = m.id) stages
    from measurements m join requests r on r.id = m.request_id join environments e on e.id = m.environment_id
    where e.device_kind = 'cuda' and e.method = {METHOD} and e.dtype = 'float16'
        and coalesce(e.allocator_settings, '') = ''
        and m.outcome in ('ok', 'out-of-memory') and m.peak_allocated_bytes > 0
    order by m.created_at desc
"""


class Gathered(NamedTuple):
    """The evidence, and what the user must know of the history it comes from, or None."""

    evidence: Evidence
    notice: str | None


def versions_text(versions: Mapping[str, str | None]) -> str:
    """The releases that decide memory, in words: what a run must share to hold today."""
    return ", ".join(f"{name} {(versions[name] or 'unknown').partition('+')[0]}" for name in VERSIONS)


def _major(cudnn: str | None) -> int | None:
    # torch writes 91002 for 9.10.2 and 8907 for 8.9.7.
    if cudnn is None or not cudnn.isdecimal():
        return None
    number = int(cudnn)
    return number // 10_000 if number >= 90_000 else number // 1000


@cache
def _capability(text: str | None) -> tuple[int, int] | None:
    major, dot, minor = (text or "").partition(".")
    return (int(major), int(minor)) if dot and major.isdecimal() and minor.isdecimal() else None


def _kind(outcome: str, num_alloc_retries: int | None) -> Kind:
    if outcome == "out-of-memory":
        return "out-of-memory"
    return "limited" if num_alloc_retries else "full"


def _is_alone(has_holders: bool, free_bytes: int | None, total_bytes: int | None, emulated_bytes: int | None) -> bool:
    # The end of an emulated capacity is not the card's, as if somebody else held the rest of it.
    if has_holders or emulated_bytes is not None:
        return False
    return free_bytes is None or total_bytes is None or free_bytes > total_bytes - _NOT_FREE_BYTES


def observation_of(measurement: Measurement) -> Observation | None:
    """The run as the planner sees it, or None where it says nothing of a GPU's memory."""
    measured, environment = measurement.measured, measurement.environment
    capability = _capability(environment.compute_capability)
    is_usual = environment.dtype == "float16" and not environment.allocator_settings and environment.method == METHOD
    if environment.device_kind != "cuda" or capability is None or not is_usual:
        return None
    has_peak = measured.peak_allocated_bytes or measured.peak_reserved_bytes
    if measured.outcome not in ("ok", "out-of-memory") or not has_peak:
        return None
    stages = {stage.stage: stage.peak_allocated_bytes for stage in measured.stages if stage.peak_allocated_bytes}
    return Observation(
        run_id=measurement.measurement_id,
        created_at=measurement.created_at,
        request=measurement.request,
        scope=measurement.scope,
        card=environment.card,
        capability=capability,
        attention=environment.attention,
        cudnn=_major(environment.cudnn),
        versions=versions_text({name: getattr(environment, name) for name in VERSIONS}),
        kind=_kind(measured.outcome, measured.num_alloc_retries),
        peak_allocated_bytes=measured.peak_allocated_bytes,
        peak_reserved_bytes=measured.peak_reserved_bytes,
        context_bytes=measured.context_bytes,
        num_alloc_retries=measured.num_alloc_retries or 0,
        stages=stages,
        ended_in=measured.ended_in,
        is_alone=_is_alone(
            bool(measurement.holders),
            measured.free_before_bytes,
            environment.total_bytes,
            environment.emulated_bytes,
        ),
        emulated_bytes=environment.emulated_bytes,
        total_bytes=environment.total_bytes,
        is_reference=measurement.origin == "reference",
    )


def _observations_in(rows: Iterable[sqlite3.Row]) -> Iterator[Observation]:
    requests: dict[str, GenerationRequest | None] = {}
    for row in rows:
        capability = _capability(row["compute_capability"])
        if row["request_id"] not in requests:
            requests[row["request_id"]] = _request_of(row)
        request = requests[row["request_id"]]
        if capability is None or request is None:
            continue
        yield Observation(
            run_id=row["id"],
            created_at=row["created_at"],
            request=request,
            card=row["card"],
            capability=capability,
            attention=row["attention"],
            cudnn=_major(row["cudnn"]),
            versions=versions_text({name: row[name] for name in VERSIONS}),
            kind=_kind(row["outcome"], row["num_alloc_retries"]),
            peak_allocated_bytes=row["peak_allocated_bytes"],
            peak_reserved_bytes=row["peak_reserved_bytes"],
            context_bytes=row["context_bytes"],
            num_alloc_retries=row["num_alloc_retries"] or 0,
            stages={stage: size for stage, size in json.loads(row["stages"]).items() if size},
            ended_in=row["ended_in"],
            is_alone=_is_alone(
                row["holders"] != "[]", row["free_before_bytes"], row["total_bytes"], row["emulated_bytes"]
            ),
            emulated_bytes=row["emulated_bytes"],
            total_bytes=row["total_bytes"],
        )


def _request_of(row: sqlite3.Row) -> GenerationRequest | None:
    values: dict[str, Any] = {field.name: row[field.name] for field in fields(GenerationRequest)}
    try:
        return GenerationRequest.from_dict(values | {name: bool(values[name]) for name in _FLAGS})
    except InvalidArgument:
        # A rule has become stricter since: such a request can no longer be asked, so its run answers nothing.
        return None


def _history(path: Path) -> list[Observation]:
    with closing(sqlite3.connect(address(path, "ro"), uri=True, timeout=BUSY_TIMEOUT_S)) as db:
        db.row_factory = sqlite3.Row
        # A byte that is no text must not cost the whole history.
        db.text_factory = lambda raw: raw.decode("utf-8", "replace")
        # An older schema lacks them: it is brought up before it is read.
        db.execute("select 1 from curves limit 1")
        db.execute("select emulated_bytes from environments limit 1")
        return list(_observations_in(db.execute(_SELECT)))


def _read(path: Path) -> tuple[list[Observation], str | None]:
    """The history's runs, and what was done to read them: an older or damaged file is brought into order first.

    Raises:
        HistoryError: it cannot be.
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


def revision(path: Path | None = None) -> tuple[str, int, str] | None:
    """Something that differs once a run was kept or deleted, or it is another history; None where it must be mended.

    Raises:
        HistoryError: ``PLANNER_DB`` cannot name a file.
    """
    where = path or default_path()
    if where.exists():
        query = "select count(*), coalesce(max(kept_at), '') from measurements"
        try:
            with closing(sqlite3.connect(address(where, "ro"), uri=True, timeout=BUSY_TIMEOUT_S)) as db:
                return str(where), *db.execute(query).fetchone()
        except sqlite3.Error:
            return None
    return str(where), 0, ""


def gather(library: Library | None, *, with_reference: bool = True, path: Path | None = None) -> Gathered:
    """Everything measured that may speak: the history's runs and, unless switched off, the reference runs.

    A history that cannot be used is a notice, not an error: a plan stands without it. Without a library nothing is
    calibrated, and what was measured still speaks for itself.
    """
    observations: list[Observation] = []
    notice, where = None, None
    try:
        where = path or default_path()
        if where.exists():
            observations, notice = _read(where)
    except HistoryError as error:
        notice = str(error)
    if with_reference:
        from cache.history.reference import reference_runs

        # One that was also imported counts once.
        known = {one.run_id for one in observations}
        shipped = (one for run in reference_runs() if (one := observation_of(run)))
        observations += [one for one in shipped if one.run_id not in known]
    curves = CurveStore(library, where)
    return Gathered(Evidence(observations, curves.curves_of, versions_text(planned_for())), notice)
