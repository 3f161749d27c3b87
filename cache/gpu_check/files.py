"""The folder of a check: each file is complete at any moment, and a check that is started again reads them."""

import contextlib
import json
import os
from collections.abc import Iterable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from cache.allocations import Recording
from cache.exchange.lines import lines_of
from cache.records import Measurement
from cache.refusals import why
from planner.errors import CannotWrite, InvalidArgument

_ADVICE = "free space there, or name another folder"


class Folder:
    """Write and read the files of a check."""

    def __init__(self, path: Path):
        """Make the folder `path`, if there is none.

        Raises:
            InvalidArgument: it is no folder, or cannot be made.
        """
        self.path = path.resolve()
        try:
            self.recordings.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            rule = "must be a folder that can be written"
            raise InvalidArgument("OUT", rule, str(path), error.strerror) from None

    @property
    def history(self) -> Path:
        """Return the path of the history that keeps the runs."""
        return self.path / "history.db"

    @property
    def recordings(self) -> Path:
        """Return the path of the recordings, each named by the id of its run."""
        return self.path / "recordings"

    @property
    def part(self) -> Path:
        """Return the path of a recording whose run has no id yet."""
        return self.recordings / "unfinished.part"

    @property
    def tests(self) -> Path:
        """Return the path of pytest's results of tests/gpu, in JUnit's format."""
        return self.path / "tests-gpu.xml"

    def write(self, name: str, text: str) -> None:
        """Write a file at once, so that a reader finds either the old or the new one.

        Raises:
            CannotWrite: the disk or its permissions refuse.
        """
        path = self.path / name
        part = path.with_name(f".{name}.part")
        try:
            with part.open("w") as file:
                file.write(text)
                file.flush()
                os.fsync(file.fileno())
            os.replace(part, path)
        except OSError as error:
            with contextlib.suppress(OSError):
                part.unlink(missing_ok=True)
            raise CannotWrite(path, why(error), _ADVICE) from error

    def write_json(self, name: str, value: Any) -> None:
        """Write a JSON document as `write` does."""
        self.write(name, json.dumps(value, indent=1, ensure_ascii=False) + "\n")

    def write_runs(self, runs: Iterable[Measurement]) -> None:
        """Write all runs in the form that ``history import`` reads."""
        self.write("runs.jsonl", "".join(f"{line}\n" for line in lines_of(runs)))

    def log(self, text: str) -> None:
        """Add a line to progress.log, with the time.

        Raises:
            CannotWrite: the disk or its permissions refuse.
        """
        path = self.path / "progress.log"
        try:
            with path.open("a") as file:
                file.write(f"{datetime.now(UTC).isoformat(timespec='seconds')} {text}\n")
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            raise CannotWrite(path, why(error), _ADVICE) from error

    def keep_recording(self, measurement_id: str) -> bool:
        """Name the recording that the worker wrote after its run; return False if it wrote none."""
        if not self.part.exists():
            return False
        os.replace(self.part, self._recording(measurement_id))
        return True

    def recording(self, measurement_id: str) -> Recording | None:
        """Read the recording of this run; return None if there is none or it cannot be read."""
        try:
            return Recording.read(self._recording(measurement_id))
        except (OSError, ValueError):
            return None

    def has_recording(self, measurement_id: str) -> bool:
        """Tell whether the run was recorded."""
        return self._recording(measurement_id).exists()

    def _recording(self, measurement_id: str) -> Path:
        return self.recordings / f"{measurement_id}.json"
