"""Where the history lives."""

import os
from pathlib import Path
from urllib.parse import quote

import platformdirs

from planner.errors import PlannerError

BUSY_TIMEOUT_S = 30


class HistoryError(PlannerError):
    """The history cannot be used; the message says why and what to do."""


def default_path() -> Path:
    """``PLANNER_DB``, or ``planner.db`` in the user's data directory.

    Raises:
        HistoryError: ``PLANNER_DB`` names a home directory that does not exist.
    """
    named = os.environ.get("PLANNER_DB")
    if not named:
        return Path(platformdirs.user_data_dir("will-it-fit")) / "planner.db"
    try:
        return Path(named).expanduser()
    except RuntimeError as error:
        raise HistoryError(f"PLANNER_DB names no home directory ({error}), got {named!r} - set it to a file") from None


def address(path: Path, mode: str) -> str:
    """The address of the file for ``sqlite3.connect(..., uri=True)``; `mode` is ``ro``, ``rw`` or ``rwc``."""
    return f"file:{quote(str(path.absolute()))}?mode={mode}"
