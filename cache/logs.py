"""Write what happens as lines of JSON: one event a line, such as a step in a job's life, found again by its id.

``setup()`` opens the log of this process, and ``get(name)`` returns a logger whose ``event`` writes a line::

    log = logs.get("jobs")
    log.event("job-queued", job=job_id, width=512)

The log is ``planner.log`` in the state folder, and `KEPT` older files beside it. ``PLANNER_LOG`` says otherwise:
``stderr``, ``off``, or the path of a file. No line has the text of a prompt: nothing here takes one, and requests do
not have it either.
"""

import contextlib
import fcntl
import json
import logging
import os
import sys
import threading
from collections.abc import Generator
from datetime import UTC, datetime
from logging.handlers import RotatingFileHandler
from pathlib import Path
from typing import Any

from cache.places import state_folder
from planner.errors import PlannerError, shortened

WHERE = "PLANNER_LOG"
ROOT_NAME = "will_it_fit"
FILE_NAME = "planner.log"
MOST_BYTES = 1_000_000
KEPT = 3
# A reason from a library can be long, and a line should stay one that a person can read.
MOST_OF_A_FIELD = 500

_lock = threading.Lock()
_root = logging.getLogger(ROOT_NAME)
_root.addHandler(logging.NullHandler())
_root.propagate = False
_root.setLevel(logging.INFO)
_opened: tuple[str, int, logging.Handler] | None = None


def _plain(value: Any) -> Any:
    if value is None or isinstance(value, (bool, int, float)):
        return value
    return shortened(str(value), MOST_OF_A_FIELD)


class _Lines(logging.Formatter):
    """Format a record as one line of JSON."""

    def format(self, record: logging.LogRecord) -> str:
        fields: dict[str, Any] = getattr(record, "fields", {})
        head = {
            "at": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "of": record.name.removeprefix(f"{ROOT_NAME}."),
            "pid": record.process,
            "event": shortened(record.getMessage(), MOST_OF_A_FIELD),
        }
        if record.exc_info and record.exc_info[0]:
            fields = fields | {"error": f"{record.exc_info[0].__name__}: {record.exc_info[1]}"}
        line = head | {name: _plain(value) for name, value in fields.items() if name not in head}
        return json.dumps(line, ensure_ascii=False)


class _SharedFile(RotatingFileHandler):
    """Write to one file from several processes: each line under a lock, and never to a file that was rotated away."""

    def __init__(self, path: Path):
        super().__init__(path, maxBytes=MOST_BYTES, backupCount=KEPT, encoding="utf-8", delay=True)

    def _open(self):
        # A link in the place of the log would lead its lines into another file.
        flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
        return open(os.open(self.baseFilename, flags, 0o600), self.mode, encoding="utf-8", errors="replace")

    @contextlib.contextmanager
    def _alone(self) -> Generator[None]:
        flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
        descriptor = os.open(f"{self.baseFilename}.lock", flags, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            yield
        finally:
            os.close(descriptor)

    def emit(self, record: logging.LogRecord) -> None:
        try:
            with self._alone():
                stream: Any = self.stream
                if stream is not None and not self._is_current(stream):
                    stream.close()
                    self.__dict__["stream"] = None
                super().emit(record)
        except OSError:
            self.handleError(record)

    def _is_current(self, stream: Any) -> bool:
        try:
            here, there = os.fstat(stream.fileno()), os.stat(self.baseFilename)
        except OSError:
            return False
        return (here.st_dev, here.st_ino) == (there.st_dev, there.st_ino)

    def handleError(self, record: logging.LogRecord) -> None:
        # A disk that is full must not end a run or fill the terminal with tracebacks: the line goes to stderr instead.
        with contextlib.suppress(OSError, ValueError):
            print(self.format(record), file=sys.stderr)


class Log:
    """Write events under one name."""

    def __init__(self, name: str):
        self._logger = logging.getLogger(f"{ROOT_NAME}.{name}")

    def event(self, event: str, *, level: int = logging.INFO, **fields: Any) -> None:
        """Write one line: the event, and its fields by name."""
        self._logger.log(level, "%s", event, extra={"fields": fields})


def get(name: str) -> Log:
    """Return the log of this name, such as ``jobs``; without `setup` its lines go nowhere."""
    return Log(name)


def _handler(where: str) -> logging.Handler:
    if where == "off":
        return logging.NullHandler()
    if where == "stderr":
        return logging.StreamHandler(sys.stderr)
    path = Path(where).expanduser() if where else state_folder() / FILE_NAME
    if not path.parent.is_dir():
        raise NotADirectoryError(f"{path.parent} is no folder")
    if path.is_symlink() or (path.exists() and not path.is_file()):
        raise FileExistsError(f"{path} is no regular file")
    return _SharedFile(path)


def setup() -> None:
    """Open the log that ``PLANNER_LOG`` names, once in a process.

    Call it again after a change of the variable. Where the file cannot be used, lines go to stderr, and the first of
    them says why.
    """
    global _opened
    where = os.environ.get(WHERE, "").strip()
    with _lock:
        # A child that was forked writes under its own id to the same file.
        key = (where or os.environ.get("PLANNER_STATE", ""), os.getpid())
        if _opened is not None and _opened[:2] == key:
            return
        problem = None
        try:
            handler = _handler(where)
        except (OSError, PlannerError, RuntimeError) as error:
            handler, problem = logging.StreamHandler(sys.stderr), str(error)
        handler.setFormatter(_Lines())
        if _opened is not None:
            _root.removeHandler(_opened[2])
            _opened[2].close()
        _root.addHandler(handler)
        _opened = (*key, handler)
    if problem:
        get("logs").event("log-refused", level=logging.WARNING, why=problem)
