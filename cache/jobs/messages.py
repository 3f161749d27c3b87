"""Read the messages of a worker, and refuse every line that is none: a worker may be broken in any way."""

import json
import math
from dataclasses import fields
from typing import Any, get_args

from cache.records import Measured, Outcome, StageMeasure

_MOST_TEXT = 2000
_MOST_COUNT = 2**62
_TEXTS = {"outcome", "reason", "ended_in", "stage"}
_COUNTS = {"num_alloc_retries"}


class NoMessage(Exception):
    """Report a line that is no message; the text says why."""


def _is_text(value: Any, most: int = _MOST_TEXT) -> bool:
    return isinstance(value, str) and len(value) <= most


def _is_count(value: Any) -> bool:
    return type(value) is int and 0 <= value <= _MOST_COUNT


def _is_number(value: Any) -> bool:
    return type(value) in (int, float) and math.isfinite(value) and value >= 0


def _values_of(kind: Any, values: Any) -> dict[str, Any]:
    """Check the fields of a Measured or a StageMeasure, `stages` left out."""
    names = {field.name for field in fields(kind)}
    if not isinstance(values, dict) or values.keys() - names:
        raise NoMessage(f"{kind.__name__} has other fields")
    for name, value in values.items():
        if name == "stages" or value is None:
            continue
        if name in _TEXTS:
            is_good = _is_text(value)
        elif name in _COUNTS or name.endswith("_bytes"):
            is_good = _is_count(value)
        else:
            is_good = _is_number(value)
        if not is_good:
            raise NoMessage(f"{name} is no value of its kind")
    return values


def measured_in(values: Any) -> Measured:
    """Make the result that a worker sent.

    Raises:
        NoMessage: a field is missing, unknown or no value of its kind.
    """
    _values_of(Measured, values)
    stages = values.get("stages")
    if values.get("outcome") not in get_args(Outcome) or not isinstance(stages, (list, tuple)):
        raise NoMessage("the result has no outcome or no stages")
    for stage in stages:
        _values_of(StageMeasure, stage)
        if not _is_text(stage.get("stage"), 100) or not _is_number(stage.get("seconds")):
            raise NoMessage("a stage has no name or no time")
    if len({stage["stage"] for stage in stages}) != len(stages):
        raise NoMessage("a stage is there twice")
    try:
        return Measured.from_dict(values)
    except TypeError as error:
        raise NoMessage(str(error)) from None


def _is_progress(message: dict[str, Any]) -> bool:
    counts = [message.get(name) for name in ("step", "of")]
    return (
        _is_text(message.get("phase"), 100)
        and (message.get("detail") is None or _is_text(message["detail"]))
        and all(value is None or _is_count(value) for value in counts)
        and (message.get("step") is None or (bool(message.get("of")) and message["step"] <= message["of"]))
    )


def _is_environment(message: dict[str, Any]) -> bool:
    known = {"attention": str, "total_bytes": int, "compute_capability": str, "cuda": str, "cudnn": str}
    return all(
        name == "type" or (name in known and (value is None or type(value) is known[name]))
        for name, value in message.items()
    )


def _is_facts(message: dict[str, Any]) -> bool:
    counts = message.get("counts")
    return isinstance(counts, dict) and all(
        isinstance(pair, list) and len(pair) == 2 and all(map(_is_count, pair)) for pair in counts.values()
    )


_CHECKS = {
    "progress": _is_progress,
    "environment": _is_environment,
    "facts": _is_facts,
    "failed": lambda message: isinstance(message.get("reason"), str),
    "result": lambda message: "measured" in message,
}


def message_in(line: str) -> dict[str, Any]:
    """Read one line as a message.

    Raises:
        NoMessage: it is no JSON object, or not one of a kind that is known, with values of their kinds.
    """
    try:
        message = json.loads(line)
        check = _CHECKS.get(message.get("type"))
    except (ValueError, TypeError, AttributeError, RecursionError):
        raise NoMessage("it is no JSON object") from None
    if check is None or not check(message):
        raise NoMessage("it is no message of a worker")
    return message
