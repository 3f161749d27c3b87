"""Open, migrate and check the history's file, and set it aside when it is damaged.

A connection belongs to its thread, so each call opens its own. Writers take ``BEGIN IMMEDIATE``: a deferred
transaction that reads and then writes fails at once under WAL when another writer came between.
"""

import contextlib
import errno
import fcntl
import os
import re
import shutil
import sqlite3
from collections.abc import Generator
from datetime import UTC, datetime
from pathlib import Path

from sqlite_utils import Database

from cache.files import write_file
from cache.history.location import BUSY_TIMEOUT_S, address, checked, default_path, is_default, refused
from cache.history.migrations import migrations
from cache.history.schema import APPLICATION_ID, check_newer, check_ours, check_tables
from cache.refusals import Refusal, refusal_of

# The endings of the files that are kept beside a history while it is in use.
_BESIDE = ("-wal", "-shm", "-journal", ".lock")


# The endings that a file that was set aside gets, once its runs are saved or given up.
RECOVERED, DISCARDED = ".recovered", ".discarded"
_STAMP = re.compile(r"\d{8}T\d{12}")
# A history is copied before its schema is changed, and this many of these copies are kept.
KEPT_COPIES = 2
_COPY = re.compile(r"\d{8}T\d{12}-\w+")


def _stamp() -> str:
    return datetime.now(UTC).strftime("%Y%m%dT%H%M%S%f")


def is_part_of(history: Path, path: Path) -> bool:
    """Tell whether this path, with links followed, is the history or a file that is kept beside it."""
    own = [history.with_name(f"{history.name}{suffix}") for suffix in ("", *_BESIDE)]
    if os.path.realpath(path) in map(os.path.realpath, own):
        return True
    # A second name of the same file.
    return path.exists() and history.exists() and os.path.samefile(path, history)


class HistoryFile:
    """The history's SQLite file.

    Opening it makes, checks and migrates the file, and sets a damaged one aside. A file that was never a history is
    refused and left as it is.

    `moved_aside` is the new name of a damaged file that was found, else None.

    Raises:
        HistoryError: the file cannot be opened, is no history, or was written by a newer version.
    """

    def __init__(self, path: Path | str | None = None):
        self.path = default_path() if path is None else checked(Path(path))
        self.moved_aside: Path | None = None
        try:
            # This comes before the lock, whose file would stand beside a file of somebody else.
            check_ours(self.path, is_default=is_default(self.path))
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with self._file_lock():
                self._check_or_move_aside()
                self._migrate()
        except (OSError, sqlite3.OperationalError) as error:
            raise refused(self.path, "opened", error) from error
        except sqlite3.DatabaseError as error:
            if refusal_of(error) is None:
                raise
            raise refused(self.path, "opened", error) from error

    def is_part(self, path: Path) -> bool:
        """Tell whether this path, with links followed, is the history or a file that is kept beside it."""
        return is_part_of(self.path, path)

    @contextlib.contextmanager
    def _file_lock(self) -> Generator[None]:
        # Making the file, switching to WAL and moving a damaged file are not covered by SQLite's own locks.
        with open(self.path.with_name(f"{self.path.name}.lock"), "a") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield

    def _check_or_move_aside(self) -> None:
        if not self.path.exists():
            return
        try:
            with self._connection() as db:
                healthy = db.execute("PRAGMA quick_check(1)").fetchone()[0] == "ok"
        except sqlite3.DatabaseError as error:
            # This statement is so plain that every other error is one of the file's content.
            if refusal_of(error) not in (None, Refusal.DAMAGED):
                raise
            healthy = False
        if healthy:
            return
        stamp = _stamp()
        for suffix in ("", "-wal", "-shm"):
            part = self.path.with_name(f"{self.path.name}{suffix}")
            if part.exists():
                moved = self.path.with_name(f"{self.path.name}.damaged-{stamp}{suffix}")
                shutil.move(part, moved)
                self.moved_aside = self.moved_aside or moved

    def _migrate(self) -> None:
        with self._connection(create=True) as db:
            # Both are checked before anything is changed, and the header of the file counts as well.
            check_tables(db.conn, self.path)
            check_newer(db.conn, self.path)
            db.enable_wal()
            with self._immediate(db):
                pending = {step.name for step in migrations.pending(db)}
                applied = [step.name for step in migrations.applied(db)]
                if applied and pending:
                    self._keep_copy(applied[-1])
                migrations.apply(db)
                if db.execute("PRAGMA application_id").fetchone()[0] != APPLICATION_ID:
                    db.execute(f"PRAGMA application_id = {APPLICATION_ID}")

    def _keep_copy(self, newest_step: str) -> None:
        """Copy the history before its schema changes, and remove all but the newest of these copies."""
        copy = self.path.with_name(f"{self.path.name}.before-{_stamp()}-{newest_step}")
        write_file(copy, self.copy_to, mode_of=self.path)
        for old in self.kept_copies()[:-KEPT_COPIES]:
            old.unlink(missing_ok=True)

    def copy_to(self, path: Path) -> None:
        """Copy the whole history into an empty file, as it is at one moment, while others read and write it.

        Raises:
            OSError: the file cannot be written.
            HistoryRefused: the history cannot be read.
        """
        with self._connect() as db, contextlib.closing(sqlite3.connect(address(path, "rw"), uri=True)) as copy:
            try:
                db.conn.backup(copy)
                # The copy is one file: without this it would get two others beside it as soon as it is opened.
                copy.execute("PRAGMA journal_mode = DELETE")
                whole = copy.execute("PRAGMA quick_check(1)").fetchone()[0]
            except sqlite3.Error as error:
                refusal = refusal_of(error)
                if refusal is None:
                    raise
                number = {Refusal.FULL: errno.ENOSPC, Refusal.READ_ONLY: errno.EROFS}.get(refusal, errno.EIO)
                raise OSError(number, os.strerror(number)) from error
            if whole != "ok":
                raise OSError(errno.EIO, f"the copy is not whole: {whole}")

    def kept_copies(self) -> list[Path]:
        """List the copies from before a change of the schema, oldest first."""
        before = f"{self.path.name}.before-"
        try:
            beside = [path for path in self.path.parent.iterdir() if path.name.startswith(before)]
        except OSError:
            return []
        return sorted(path for path in beside if _COPY.fullmatch(path.name.removeprefix(before)))

    def is_kept_copy(self, path: Path) -> bool:
        """Tell whether this path, with links followed, is one of `kept_copies`."""
        return os.path.realpath(path) in map(os.path.realpath, self.kept_copies())

    @contextlib.contextmanager
    def _connection(self, *, create: bool = False) -> Generator[Database]:
        # Only opening makes a file: one that vanished under a running server must not come back without its tables.
        where = address(self.path, "rwc" if create else "rw")
        connection = sqlite3.connect(where, uri=True, timeout=BUSY_TIMEOUT_S, isolation_level=None)
        try:
            connection.execute("PRAGMA foreign_keys = ON")
            yield Database(connection)
        finally:
            connection.close()

    @contextlib.contextmanager
    def _connect(self, done: str = "read") -> Generator[Database]:
        """Open a connection; `done` names, in an error, what it is for.

        Raises:
            HistoryRefused: the disk, the file's permissions or another program prevent it.
        """
        try:
            with self._connection() as db:
                yield db
        except sqlite3.Error as error:
            if refusal_of(error) is None:
                raise
            raise refused(self.path, done, error) from error

    @staticmethod
    @contextlib.contextmanager
    def _immediate(db: Database) -> Generator[None]:
        db.execute("BEGIN IMMEDIATE")
        try:
            yield
            db.commit()
        except BaseException:
            # Where the disk is full SQLite may have done so already, or not be able to; closing does it at last.
            with contextlib.suppress(sqlite3.Error):
                db.rollback()
            raise

    @contextlib.contextmanager
    def _writing(self) -> Generator[Database]:
        with self._connect("written") as db, self._immediate(db):
            yield db

    def damaged_files(self) -> list[Path]:
        """List the files that were set aside next to the history and not dealt with since, oldest first."""
        before = f"{self.path.name}.damaged-"
        try:
            aside = [path for path in self.path.parent.iterdir() if path.name.startswith(before)]
        except OSError:
            # Opening the history says what is wrong with its folder.
            return []
        return sorted(path for path in aside if _STAMP.fullmatch(path.name.removeprefix(before)))

    def is_set_aside(self, path: Path) -> bool:
        """Tell whether this path, with links followed, is one of `damaged_files`."""
        return os.path.realpath(path) in map(os.path.realpath, self.damaged_files())

    @staticmethod
    def put_away(path: Path, suffix: str) -> Path:
        """Rename a file that was set aside, with what SQLite kept beside it; returns its new name.

        Raises:
            OSError: it cannot be renamed.
        """
        path = Path(os.path.realpath(path))
        name = path.with_name(f"{path.name}{suffix}")
        for beside in ("-wal", "-shm", ""):
            part = path.with_name(f"{path.name}{beside}")
            if part.exists():
                part.rename(name.with_name(f"{name.name}{beside}"))
        return name
