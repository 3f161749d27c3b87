"""Runs as rows of the history and back, and what tells whether rows are still those that were kept."""

import json
from collections.abc import Iterable, Mapping
from dataclasses import fields
from typing import Any

from cache.records import Environment, Measured, Measurement, Prediction, content_id
from planner.request import GenerationRequest

Columns = Mapping[str, Any]

_BOOLEANS = ("safety_checker", "vae_tiling", "vae_slicing", "attention_slicing", "channels_last")


def request_from(row: Columns) -> GenerationRequest:
    """The request kept in a row.

    Raises:
        InvalidArgument: a rule has become stricter since, or the row is none of ours.
    """
    values = {field.name: row[field.name] for field in fields(GenerationRequest)}
    return GenerationRequest.from_dict(values | {name: bool(values[name]) for name in _BOOLEANS})


def measurement_from(
    row: Columns,
    request: GenerationRequest,
    environment: Environment,
    stages: Iterable[Columns],
    predictions: Iterable[Columns],
) -> Measurement:
    """The run kept in a row and in those of its stages and predictions, which come without the run's id."""
    return Measurement(
        measurement_id=row["id"],
        created_at=row["created_at"],
        request=request,
        environment=environment,
        measured=Measured.from_dict(
            {field.name: row[field.name] for field in fields(Measured) if field.name != "stages"} | {"stages": stages}
        ),
        holders=tuple(json.loads(row["holders"])),
        predictions=tuple(
            Prediction(**{**prediction, "stages": json.loads(prediction["stages"])}) for prediction in predictions
        ),
        origin=row["origin"],
        source=row["source"],
    )


def _plain(row: Columns) -> dict[str, Any]:
    # SQLite gives a whole number back as 1.0 where the column is for both, and nothing for what a row never had.
    return {
        name: float(value) if isinstance(value, (int, float)) else value
        for name, value in row.items()
        if value is not None and name not in ("measurement_id", "digest")
    }


def digest_of(row: Columns, stages: Iterable[Columns], predictions: Iterable[Columns]) -> str:
    """A hash of a run's row and of those that hang on it: a number that was changed or a stage that is lost shows.

    The ids of its request and environment are hashes of their own content.
    """
    parts = {"stages": [*map(_plain, stages)], "predictions": [*map(_plain, predictions)]}
    return content_id(_plain(row) | parts)
