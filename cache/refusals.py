"""Tell refusals by a disk, by permissions or by another program from bugs of ours, with advice for each."""

import errno
import sqlite3
from enum import StrEnum


class Refusal(StrEnum):
    """Name the reasons why a file cannot be used; each has its own advice."""

    FULL = "full"
    READ_ONLY = "read-only"
    LOCKED = "locked"
    GONE = "gone"
    DAMAGED = "damaged"
    FAILING = "failing"


_OF_THE_SYSTEM = {
    errno.ENOSPC: Refusal.FULL,
    errno.EDQUOT: Refusal.FULL,
    errno.EFBIG: Refusal.FULL,
    errno.EACCES: Refusal.READ_ONLY,
    errno.EPERM: Refusal.READ_ONLY,
    errno.EROFS: Refusal.READ_ONLY,
    errno.ENOENT: Refusal.GONE,
    errno.EIO: Refusal.FAILING,
}
# The keys are SQLite's primary result codes. Other codes are about statements, so they are bugs of ours.
_OF_SQLITE = {
    sqlite3.SQLITE_FULL: Refusal.FULL,
    sqlite3.SQLITE_READONLY: Refusal.READ_ONLY,
    sqlite3.SQLITE_PERM: Refusal.READ_ONLY,
    sqlite3.SQLITE_AUTH: Refusal.READ_ONLY,
    sqlite3.SQLITE_BUSY: Refusal.LOCKED,
    sqlite3.SQLITE_LOCKED: Refusal.LOCKED,
    sqlite3.SQLITE_PROTOCOL: Refusal.LOCKED,
    sqlite3.SQLITE_CANTOPEN: Refusal.GONE,
    sqlite3.SQLITE_CORRUPT: Refusal.DAMAGED,
    sqlite3.SQLITE_NOTADB: Refusal.DAMAGED,
    sqlite3.SQLITE_IOERR: Refusal.FAILING,
}
_FOR_THE_HISTORY = {
    Refusal.FULL: "free space on its disk, or set PLANNER_DB to a file on another one",
    Refusal.READ_ONLY: "make it and its folder writable, or set PLANNER_DB to a file you may write",
    Refusal.LOCKED: "another program holds it: try again once that has ended",
    Refusal.GONE: "it was moved or its folder is gone: start again, or set PLANNER_DB to a file you may write",
    Refusal.DAMAGED: "'python -m planner history list' sets it aside and starts a new one",
    Refusal.FAILING: "free space on its disk and see whether it is failing, or set PLANNER_DB to a file on another one",
}


def refusal_of(error: BaseException) -> Refusal | None:
    """Find the reason why a file was refused, or None if the error is of another kind."""
    if isinstance(error, OSError):
        return _OF_THE_SYSTEM.get(error.errno or 0)
    if not isinstance(error, sqlite3.Error):
        return None
    code = getattr(error, "sqlite_errorcode", None)
    if code is None:
        # Python raises this for text that is not UTF-8, which SQLite itself does not check.
        return Refusal.DAMAGED if "Could not decode to UTF-8" in str(error) else None
    # The upper bits tell variants of one primary code apart.
    return _OF_SQLITE.get(code & 0xFF)


def why(error: BaseException) -> str:
    """Return the system's or SQLite's own words, without the number and the file."""
    return (isinstance(error, OSError) and error.strerror) or str(error)


def way_out_of_history(error: BaseException) -> str:
    """Return the advice for a history that was refused."""
    found = refusal_of(error)
    return _FOR_THE_HISTORY[found] if found else "set PLANNER_DB to a file you may write"
