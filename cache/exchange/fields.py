"""Turn a JSON value into a run by the rules of docs/history-format.md, field by field.

The file may come from an older or newer planner, so every rule is checked that runs of this one keep by construction.
"""

from dataclasses import fields
from datetime import UTC, datetime, timedelta
from typing import Any, get_args

from cache.exchange.consistency import check_relations
from cache.exchange.rules import (
    Broken,
    array,
    nullable,
    number,
    one_of,
    record,
    scalar,
    shaped,
    table,
    text,
    truth,
    whole,
)
from cache.records import (
    DeviceKind,
    Environment,
    Measured,
    Measurement,
    Origin,
    Outcome,
    Prediction,
    StageMeasure,
)
from planner.answer import Basis, Verdict
from planner.components import STAGES, Scope
from planner.errors import InvalidArgument
from planner.request import FIELDS, GenerationRequest

FORMAT, VERSION = "will-it-fit/run", 1
MAX_TEXT, MAX_REASON = 500, 2000
# A clock may be wrong by a time zone and not by more.
_AHEAD = timedelta(days=1)
# Before the model was published there was nothing to measure.
_EARLIEST = datetime(2022, 10, 20, tzinfo=UTC)
# From Kepler, for which torch was once built, to GPUs that may come.
_CAPABILITY = r"([3-9]|1\d|20)\.\d"


def _request(value: Any) -> GenerationRequest:
    try:
        return GenerationRequest.from_dict(_REQUEST_FIELDS(value))
    except InvalidArgument as error:
        raise Broken(error.rule, error.value, error.nearest).inside(error.argument) from None


def _time(value: Any) -> datetime:
    rule = Broken("must be a time with its offset, as ISO 8601 writes it", value, "2026-11-24T09:31:08+00:00")
    if type(value) is not str or len(value) > 64:
        raise rule
    try:
        parsed = datetime.fromisoformat(value)
        if parsed.tzinfo is None:
            raise rule
        return parsed.astimezone(UTC)
    except (ValueError, OverflowError):
        raise rule from None


_SIZE = nullable(whole(0, 2**50))
_SECONDS = number(0, 1e7)
_TEXT = text(MAX_TEXT)
_STAGE = one_of(*STAGES)
_COUNT = whole(0, 1_000_000)

_ENVIRONMENT = {field.name: nullable(_TEXT) if field.default is None else _TEXT for field in fields(Environment)} | {
    "device_kind": one_of(*get_args(DeviceKind)),
    "total_bytes": _SIZE,
    "compute_capability": nullable(shaped(_CAPABILITY, "a version from 3.0 to 20.9, such as 7.5")),
    "mig": nullable(truth),
    "dtype": one_of("float16", "bfloat16", "float32"),
    "method": _COUNT,
    "emulated_bytes": nullable(whole(1, 2**50)),
}
_STAGE_MEASURE = {
    "stage": _STAGE,
    "peak_allocated_bytes": _SIZE,
    "peak_reserved_bytes": _SIZE,
    "device_bytes": _SIZE,
    "seconds": _SECONDS,
}
_MEASURED = {
    "outcome": one_of(*get_args(Outcome)),
    "reason": nullable(text(MAX_REASON)),
    "ended_in": nullable(_TEXT),
    "weights_bytes": _SIZE,
    "peak_allocated_bytes": _SIZE,
    "peak_reserved_bytes": _SIZE,
    "peak_device_bytes": _SIZE,
    "context_bytes": _SIZE,
    "free_before_bytes": _SIZE,
    "num_alloc_retries": nullable(_COUNT),
    "load_seconds": nullable(_SECONDS),
    "total_seconds": nullable(_SECONDS),
    "seconds_per_step": nullable(_SECONDS),
    "stages": array(record(StageMeasure, _STAGE_MEASURE), unique=lambda stage: stage.stage),
}
_PREDICTION = {
    "basis": one_of(*get_args(Basis)),
    "verdict": one_of(*get_args(Verdict)),
    "need_bytes": _SIZE,
    "minimum_bytes": _SIZE,
    "peak_allocated_bytes": _SIZE,
    "peak_reserved_bytes": _SIZE,
    "stages": table(dict.fromkeys(STAGES, whole(0, 2**50)), optional=frozenset(STAGES)),
}
_HOLDER = {"pid": whole(0, 2**32), "name": _TEXT, "used_bytes": _SIZE}
# The request checks each value. Here all must be given, since a file must not depend on defaults; fields that came
# later are left out of older files, and mean their defaults.
_REQUEST_FIELDS = table(
    {field.name: scalar for field in FIELDS},
    optional=frozenset(field.name for field in FIELDS if field.is_later),
)
_LINE = table(
    {
        "format": _TEXT,
        "version": whole(VERSION, VERSION),
        "id": shaped("[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}", "a UUID in lower case"),
        "created_at": _time,
        "scope": one_of(*get_args(Scope)),
        "source": nullable(_TEXT),
        "request": _request,
        "environment": record(Environment, _ENVIRONMENT),
        "measured": record(Measured, _MEASURED),
        "holders": array(table(_HOLDER)),
        "predictions": array(record(Prediction, _PREDICTION), unique=lambda prediction: prediction.basis),
    },
    optional=frozenset({"source"}),
)


def run_of(value: Any, origin: Origin) -> Measurement:
    """Make the run of a line's JSON value.

    Raises:
        Broken: a field breaks its rule, or two of them cannot be of one run.
    """
    # These are checked before the fields, which may be others in another version.
    if type(value) is dict:
        for name, known in (("format", FORMAT), ("version", VERSION)):
            if name in value and (type(value[name]) is not type(known) or value[name] != known):
                raise Broken(f"must be {known!r}, which is all that this planner reads", value[name]).inside(name)
    line = _LINE(value)
    # Reference runs are exempt from these two: they are dated by their publication, and some are of half a pipeline.
    if origin != "reference":
        if line["scope"] != "pipeline":
            raise Broken("must be pipeline: only whole runs are imported", line["scope"]).inside("scope")
        if line["created_at"] > datetime.now(UTC) + _AHEAD:
            raise Broken("must not be in the future", value["created_at"]).inside("created_at")
    if line["created_at"] < _EARLIEST:
        rule = f"must not be before Stable Diffusion v1.5, of {_EARLIEST:%Y-%m-%d}"
        raise Broken(rule, value["created_at"]).inside("created_at")
    check_relations(line["environment"], line["measured"], may_lack_allocated=origin == "reference")
    return Measurement(
        measurement_id=line["id"],
        created_at=line["created_at"].isoformat(timespec="microseconds"),
        request=line["request"],
        environment=line["environment"],
        measured=line["measured"],
        holders=line["holders"],
        predictions=line["predictions"],
        origin=origin,
        scope=line["scope"],
        source=line.get("source"),
    )
