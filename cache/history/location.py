"""Where measured runs live: the history, and those that ship."""

import os
import re
from collections.abc import Iterable
from pathlib import Path
from urllib.parse import quote

import platformdirs

from cache.refusals import way_out_of_history, why
from planner.cards.lookup import family_of
from planner.errors import PlannerError

BUSY_TIMEOUT_S = 30
# Of the runs that ship, as lines of text that `cache.exchange.lines` reads.
REFERENCE_RUNS = Path(__file__).parent / "reference_runs"


class HistoryError(PlannerError):
    """The history cannot be used; the message says why and what to do."""


class HistoryRefused(HistoryError):
    """The history's file cannot be opened, read or written: which, what was done to it, why, and the way out."""

    def __init__(self, path: object, done: str, why: str, advice: str):
        self.path, self.done, self.why, self.advice = str(path), done, why, advice
        super().__init__(f"the history {path} cannot be {done} ({why}) - {advice}")

    def __reduce__(self):
        return type(self), (self.path, self.done, self.why, self.advice)


def refused(path: Path, done: str, error: BaseException) -> HistoryRefused:
    """The error of a history that the disk, its permissions or another program refuse; `done` is such as written."""
    return HistoryRefused(path, done, why(error), way_out_of_history(error))


def cannot_be_opened(path: Path, reason: object) -> HistoryError:
    """The error of a path that cannot be a history."""
    return HistoryRefused(path, "opened", str(reason), "set PLANNER_DB to a file you may write")


def checked(path: Path) -> Path:
    """The path, of a file that is there or could be.

    Raises:
        HistoryError: it is a folder or a device, or the system refuses to look at it.
    """
    try:
        if path.exists() and not path.is_file():
            raise cannot_be_opened(path, "it is a folder" if path.is_dir() else "it is no regular file")
    except OSError as error:
        raise cannot_be_opened(path, error.strerror) from error
    return path


def default_path() -> Path:
    """``PLANNER_DB``, or ``planner.db`` in the user's data directory.

    Raises:
        HistoryError: ``PLANNER_DB`` names a home directory that does not exist, or no file, as `checked`.
    """
    named = os.environ.get("PLANNER_DB")
    if not named:
        return checked(Path(platformdirs.user_data_dir("will-it-fit")) / "planner.db")
    try:
        return checked(Path(named).expanduser())
    except RuntimeError as error:
        raise HistoryError(f"PLANNER_DB names no home directory ({error}), got {named!r} - set it to a file") from None


def address(path: Path, mode: str) -> str:
    """The address of the file for ``sqlite3.connect(..., uri=True)``; `mode` is ``ro``, ``rw`` or ``rwc``."""
    return f"file:{quote(str(path.absolute()))}?mode={mode}"


def anything_measured(capabilities: Iterable[tuple[int, int]], *, with_reference: bool = True) -> bool:
    """Whether there can be runs that speak of cards of these compute capabilities, found out without reading them.

    Raises:
        HistoryError: as `default_path`.
    """
    if default_path().exists():
        return True
    text = "".join(path.read_text() for path in REFERENCE_RUNS.glob("*.jsonl")) if with_reference else ""
    shipped = re.findall(r'"compute_capability":"([0-9]+)\.([0-9])"', text)
    families = {family_of((int(major), int(minor))) for major, minor in set(shipped)}
    return any(family_of(capability) in families for capability in capabilities)
