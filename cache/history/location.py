"""Name the places where measured runs are kept: the history's file, and the runs that ship."""

import json
import os
from collections.abc import Iterable
from pathlib import Path
from urllib.parse import quote

import platformdirs

from cache.refusals import way_out_of_history, why
from planner.cards.lookup import family_of
from planner.errors import PlannerError, shortened

BUSY_TIMEOUT_S = 30
# The folder of the runs that ship, as lines of text that `cache.exchange.lines` reads.
REFERENCE_RUNS = Path(__file__).parent / "reference_runs"


class HistoryError(PlannerError):
    """The history cannot be used; the message says why and what to do."""


class HistoryRefused(HistoryError):
    """The history's file cannot be opened, read or written.

    The message names the file, what was tried (`done`), why it was refused, and the way out (`advice`).
    """

    def __init__(self, path: object, done: str, why: str, advice: str):
        self.path, self.done, self.why, self.advice = str(path), done, why, advice
        super().__init__(f"the history {shortened(str(path), 600)} cannot be {done} ({why}) - {advice}")

    def __reduce__(self):
        return type(self), (self.path, self.done, self.why, self.advice)


def refused(path: Path, done: str, error: BaseException) -> HistoryRefused:
    """Make the error for a file that the disk, its permissions or another program refuse.

    `done` is such as written.
    """
    return HistoryRefused(path, done, why(error), way_out_of_history(error))


def cannot_be_opened(path: Path, reason: object) -> HistoryError:
    """Make the error for a path that cannot be a history."""
    return HistoryRefused(path, "opened", str(reason), "set PLANNER_DB to a file you may write")


def checked(path: Path) -> Path:
    """Give the path back if a history is there or could be made there.

    Raises:
        HistoryError: it is a folder or a device, or the system refuses to look at it.
    """
    try:
        if path.exists() and not path.is_file():
            raise cannot_be_opened(path, "it is a folder" if path.is_dir() else "it is no regular file")
    except OSError as error:
        raise cannot_be_opened(path, error.strerror) from error
    return path


def _own_place() -> Path:
    return Path(platformdirs.user_data_dir("will-it-fit")) / "planner.db"


def is_default(path: Path) -> bool:
    """Tell whether this is where a history is kept if ``PLANNER_DB`` names no file."""
    return path == _own_place()


def default_path() -> Path:
    """Give the path in ``PLANNER_DB``, or ``planner.db`` in the user's data directory.

    Raises:
        HistoryError: ``PLANNER_DB`` names a home directory that does not exist, or no file, as `checked`.
    """
    named = os.environ.get("PLANNER_DB")
    if not named:
        return checked(_own_place())
    try:
        return checked(Path(named).expanduser())
    except RuntimeError as error:
        raise HistoryError(f"PLANNER_DB names no home directory ({error}), got {named!r} - set it to a file") from None


def address(path: Path, mode: str) -> str:
    """Write the file's address for ``sqlite3.connect(..., uri=True)``.

    `mode` is ``ro``, ``rw`` or ``rwc``.
    """
    return f"file:{quote(str(path.absolute()))}?mode={mode}"


def anything_measured(capabilities: Iterable[tuple[int, int]], *, with_reference: bool = True) -> bool:
    """Tell whether there can be runs on GPUs of these compute capabilities, without making the runs.

    Of the runs that ship only the compute capability is read: the rules of the format take longer to import.

    Raises:
        HistoryError: as `default_path`.
    """
    if default_path().exists():
        return True
    families = _families_that_ship() if with_reference else set()
    return any(family_of(capability) in families for capability in capabilities)


def _families_that_ship() -> set[str]:
    lines = (line for path in REFERENCE_RUNS.glob("*.jsonl") for line in path.read_text().splitlines())
    capabilities = {json.loads(line)["environment"]["compute_capability"] for line in lines}
    return {family_of((int(major), int(minor))) for major, minor in (text.split(".") for text in capabilities)}
