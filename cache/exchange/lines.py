"""Write and read measured runs as lines of text, so that a run measured on one machine counts on another.

docs/history-format.md is the format. A file may come from anybody, so every field is checked: `measurement_of` gives a
run that this planner could have measured, or raises.
"""

import json
from collections.abc import Iterable, Iterator
from dataclasses import asdict
from typing import Any, BinaryIO

from cache.exchange.fields import FORMAT, MAX_REASON, MAX_TEXT, VERSION, run_of
from cache.exchange.rules import UNSAFE, Broken, load
from cache.records import Measurement, Origin
from planner.errors import PlannerError

MAX_LINE_BYTES = 64 * 1024
MAX_RUNS = 100_000
MAX_FILE_BYTES = 256 * 1024**2


class NotARun(PlannerError):
    """A line is no run; the message names the line, the field, the rule that it breaks and the value."""

    def __init__(self, line_number: int, field: str, rule: str, shown: str, nearest: str | None = None):
        self.line_number, self.field, self.rule, self.shown, self.nearest = line_number, field, rule, shown, nearest
        subject = f"line {line_number}: {field}" if field else f"line {line_number}"
        super().__init__(f"{subject} {rule}, got {shown}" + (f" ({nearest})" if nearest else ""))

    def __reduce__(self):
        return type(self), (self.line_number, self.field, self.rule, self.shown, self.nearest)


def measurement_of(line: str, line_number: int, origin: Origin = "imported") -> Measurement:
    """Read the run of one line. A reference run may be of one half of the VAE, an imported run may not.

    Raises:
        NotARun: the line breaks a rule of the format.
    """
    try:
        return run_of(load(line), origin)
    except Broken as broken:
        raise NotARun(line_number, broken.path, broken.rule, broken.shown, broken.nearest) from None


def read_runs(lines: Iterable[bytes], origin: Origin = "imported") -> list[Measurement]:
    """Read the runs of a file, as `lines_in` gives its lines; empty lines are skipped.

    Raises:
        NotARun: a line breaks a rule of the format, or there are more than the format allows.
    """
    found: list[Measurement] = []
    size_bytes = 0
    for line_number, line in enumerate(lines, 1):
        size_bytes += len(line)
        if len(line) > MAX_LINE_BYTES:
            raise NotARun(line_number, "", f"must be at most {MAX_LINE_BYTES} bytes", "more")
        if size_bytes > MAX_FILE_BYTES:
            raise NotARun(line_number, "", f"must end within {MAX_FILE_BYTES} bytes of the file", "more")
        if not line.strip():
            continue
        if len(found) == MAX_RUNS:
            raise NotARun(line_number, "", f"must be among the first {MAX_RUNS} runs of the file", "one more")
        try:
            decoded = line.rstrip(b"\r\n").decode()
        except UnicodeDecodeError as error:
            raise NotARun(line_number, "", "must be UTF-8", f"{line[error.start : error.start + 8]!r}") from None
        found.append(measurement_of(decoded, line_number, origin))
    return found


def lines_in(file: BinaryIO) -> Iterator[bytes]:
    """Split a file into lines, each cut at the longest that the format allows."""
    return iter(lambda: file.readline(MAX_LINE_BYTES + 1), b"")


def _portable(value: Any, longest: int = MAX_TEXT) -> Any:
    """Make a value fit the format: names and reasons come from other programs and may hold anything."""
    if isinstance(value, str):
        return UNSAFE.sub(" ", value)[:longest]
    if isinstance(value, dict):
        return {name: _portable(entry, MAX_REASON if name == "reason" else MAX_TEXT) for name, entry in value.items()}
    if isinstance(value, (list, tuple)):
        return [_portable(entry) for entry in value]
    return value


def line_of(measurement: Measurement) -> str:
    """Write the run as one line, without its end; control characters become spaces."""
    line = {
        "format": FORMAT,
        "version": VERSION,
        "id": measurement.measurement_id,
        "created_at": measurement.created_at,
        "scope": measurement.scope,
        "source": measurement.source,
        "request": measurement.request.to_record(),
        "environment": measurement.environment.to_dict(),
        "measured": asdict(measurement.measured),
        "holders": measurement.holders,
        "predictions": [asdict(prediction) for prediction in measurement.predictions],
    }
    return json.dumps(_portable(line), ensure_ascii=False, separators=(",", ":"), allow_nan=False)


def lines_of(measurements: Iterable[Measurement]) -> Iterator[str]:
    """Write one line a run, without their ends."""
    return map(line_of, measurements)
