"""Tell whether a file is a history of this planner, and of which schema.

sqlite-utils is not imported here, since it takes longer to load than a whole ``fit``.
"""

import mmap
import sqlite3
from contextlib import closing
from pathlib import Path

from cache.history.location import HistoryError, address
from planner.request import FIELDS

# The steps of `cache.history.migrations`, oldest first.
STEPS = (
    "m001_requests_and_environments",
    "m002_measurements",
    "m003_model_facts",
    "m004_jobs",
    "m005_programs",
    "m006_origins",
    "m007_curves",
    "m008_emulated_capacities",
    "m009_digests",
    "m010_audit_and_stopped_jobs",
    *(f"request_{field.name}" for field in FIELDS if field.is_later),
)
SET = "will_it_fit"
STEPS_TABLE = "_sqlite_migrations"
# "WIFT" in ASCII, which stands in the header of each history that this version has opened.
APPLICATION_ID = 0x57494654
MAGIC = b"SQLite format 3\0"
_ID_AT = slice(68, 72)
# SQLite keeps the columns of a row one after another, so the row of the first step looks like this in every history.
# It is put together here, so that no file of the planner's code has it.
_MARK = (SET + STEPS[0]).encode()


class NotOurs(HistoryError):
    """Report a file that is no history of this planner, which is therefore left as it is."""

    def __init__(self, path: object, why: str):
        self.path, self.why = str(path), why
        super().__init__(
            f"{path} is no history ({why}), so it is left as it is - set PLANNER_DB to another file; "
            "'python -m planner history recover FILE' reads what is left of a damaged history"
        )

    def __reduce__(self):
        return type(self), (self.path, self.why)


def newer_step(db: sqlite3.Connection) -> str | None:
    """Find a step of the schema that this version does not know, or None."""
    tables = "select count(*) from sqlite_master where type = 'table' and name = ?"
    if not db.execute(tables, [STEPS_TABLE]).fetchone()[0]:
        return None
    applied = db.execute(f"select name from {STEPS_TABLE} where migration_set = ?", [SET])
    return next((name for (name,) in applied if name not in STEPS), None)


def written_by_newer(path: Path, step: str) -> HistoryError:
    """Make the error for a history that a newer version has written: every command refuses it."""
    return HistoryError(
        f"{path} was written by a newer version (migration {step} is unknown here) - "
        "upgrade, or set PLANNER_DB to another file"
    )


def check_newer(db: sqlite3.Connection, path: Path) -> None:
    """Check that no newer version has written the history.

    Raises:
        HistoryError: one has.
    """
    step = newer_step(db)
    if step:
        raise written_by_newer(path, step)


def check_tables(db: sqlite3.Connection, path: Path) -> None:
    """Check that the database is empty or a history.

    Raises:
        NotOurs: it has tables, and they are those of another program.
    """
    tables = {name for (name,) in db.execute("select name from sqlite_master where type = 'table'")}
    if not tables - {STEPS_TABLE, "sqlite_sequence", "sqlite_stat1"}:
        return
    steps = f"select count(*) from {STEPS_TABLE} where migration_set = ?"
    if STEPS_TABLE not in tables or not db.execute(steps, [SET]).fetchone()[0]:
        raise NotOurs(path, "it is a database of another program")


def check_ours(path: Path, *, is_default: bool) -> None:
    """Check that a file is a history, or was one before it was damaged, or is empty.

    Nothing is made or changed.

    A damaged file was ours if our mark stands in its header, or the row of our schema's first step anywhere in it or in
    its write-ahead log. A file at the default location is ours as well, because nobody else has a reason to keep one
    there.

    Raises:
        NotOurs: nothing says that it is ours.
        OSError: it cannot be read.
    """
    if is_default or not path.exists() or path.stat().st_size == 0:
        return
    with path.open("rb") as file:
        header = file.read(100)
    if header.startswith(MAGIC) and int.from_bytes(header[_ID_AT]) == APPLICATION_ID:
        return
    if any(map(_has_mark, (path, path.with_name(f"{path.name}-wal")))):
        return
    if not header.startswith(MAGIC):
        raise NotOurs(path, "it is no SQLite database")
    try:
        # An immutable database is read without a lock and without files beside it, so the other program sees nothing.
        with closing(sqlite3.connect(f"{address(path, 'ro')}&immutable=1", uri=True)) as db:
            check_tables(db, path)
    except sqlite3.Error:
        raise NotOurs(path, "it is a damaged database, and nothing says that it was a history") from None


def _has_mark(path: Path) -> bool:
    try:
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
            return content.find(_MARK) >= 0
    except (FileNotFoundError, ValueError):
        # There is no such file, or an empty one cannot be mapped.
        return False
