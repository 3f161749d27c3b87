"""Turn rows of the history into runs, and tell whether rows are still those that were kept."""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import fields
from typing import Any

from cache.records import Environment, Measured, Measurement, Prediction, StageMeasure, content_id
from planner.errors import PlannerError
from planner.fields import Switch
from planner.request import FIELDS, GenerationRequest

Columns = Mapping[str, Any]

# What a row raises that this planner would not have kept, in whatever way that shows.
BROKEN_ROW = (PlannerError, ValueError, TypeError, LookupError, AttributeError, OverflowError, RecursionError)

# SQLite has no truth values: a switch is kept as 0 or 1.
_SWITCHES = tuple(field.name for field in FIELDS if isinstance(field, Switch))
_MEASURED = tuple(field.name for field in fields(Measured) if field.name != "stages")
# The columns of a run's row that `measurement_from` reads.
RUN_COLUMNS = ("id", "created_at", "origin", "source", "holders", *_MEASURED)


def request_from(row: Columns) -> GenerationRequest:
    """Make the request that is kept in a row.

    Raises:
        InvalidArgument: a rule has become stricter since, or the row is not one of the history.
    """
    values = {field.name: row[field.name] for field in FIELDS}
    return GenerationRequest.from_dict(values | {name: bool(values[name]) for name in _SWITCHES})


def prediction_from(row: Columns) -> Prediction:
    """Make the prediction that is kept in a row, which comes without the run's id."""
    return Prediction(**{**row, "stages": json.loads(row["stages"])})


def measurement_from(
    values: Sequence[Any],
    request: GenerationRequest,
    environment: Environment,
    stages: Iterable[StageMeasure],
    predictions: Iterable[Prediction],
) -> Measurement:
    """Make the run that is kept in a row, whose values come in the order of `RUN_COLUMNS`."""
    run_id, created_at, origin, source, holders, *measured = values
    return Measurement(
        measurement_id=run_id,
        created_at=created_at,
        request=request,
        environment=environment,
        measured=Measured(**dict(zip(_MEASURED, measured, strict=True)), stages=tuple(stages)),
        # Most runs had their GPU to themselves, and ten thousand empty lists take a while to parse.
        holders=tuple(json.loads(holders)) if holders != "[]" else (),
        predictions=tuple(predictions),
        origin=origin,
        source=source,
    )


def _plain(row: Columns) -> dict[str, Any]:
    # SQLite gives a whole number back as 1.0 where the column holds both kinds, and null for a later column.
    return {
        name: float(value) if isinstance(value, (int, float)) else value
        for name, value in row.items()
        if value is not None and name not in ("measurement_id", "digest")
    }


def digest_of(row: Columns, stages: Iterable[Columns], predictions: Iterable[Columns]) -> str:
    """Hash a run's row with its stages and predictions, so that a changed number or a lost stage shows.

    The ids of its request and environment are hashes of their own content.
    """
    parts = {"stages": [*map(_plain, stages)], "predictions": [*map(_plain, predictions)]}
    return content_id(_plain(row) | parts)
