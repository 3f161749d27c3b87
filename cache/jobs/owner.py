"""The owner of a job: a lock on a file beside the history, which the system drops when the process ends.

Process ids would not do: they are used again, and differ between containers that share a history. Start times change
with the clock.
"""

import contextlib
import fcntl
import json
import os
import signal
import uuid
from pathlib import Path
from typing import Self

from cache import logs
from cache.history.location import refused


def _file_of(history: Path, name: str) -> Path:
    return history.with_name(f"{history.name}.owner-{name}")


def _started(pid: int) -> str | None:
    """Return when a process of this user started, or None if there is no such process.

    The text tells it from every other process that has its id. Linux counts ticks since the machine started, which do
    not change with the clock; the machine's own start has an id.
    """
    try:
        if os.stat(f"/proc/{pid}").st_uid != os.geteuid():
            return None
        # The name of a process is in brackets, and may have brackets and blanks itself.
        ticks = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19]
        return f"{Path('/proc/sys/kernel/random/boot_id').read_text().strip()} {ticks}"
    except (OSError, IndexError):
        # There is no such process, or the system is not Linux.
        return None


def _end_worker_in(descriptor: int) -> None:
    """Kill the worker that a dead owner noted, if it is still that process.

    A worker that is stopped outlives its parent.
    """
    try:
        if os.fstat(descriptor).st_uid != os.geteuid():
            # Another user who may write beside the history must not choose what is killed.
            return
        noted = json.loads(os.pread(descriptor, 1000, 0) or b"null")
        pid, started = noted["pid"], noted["started"]
    except (OSError, ValueError, TypeError, KeyError):
        return
    if type(pid) is not int or pid <= 1 or not isinstance(started, str) or _started(pid) != started:
        return
    with contextlib.suppress(OSError):
        # A worker leads the group of the processes that it started.
        if os.getpgid(pid) == pid:
            os.killpg(pid, signal.SIGKILL)
        else:
            os.kill(pid, signal.SIGKILL)
    logs.get("jobs").event("worker-reaped", worker=pid)


class Owner:
    """Hold a claim for as long as this process lives, or until it is given up."""

    def __init__(self, history: Path, name: str, descriptor: int):
        self.name = name
        self._file, self._descriptor = _file_of(history, name), descriptor

    @classmethod
    def claim(cls, history: Path) -> Self:
        """Claim a new owner with a random name.

        Raises:
            HistoryRefused: no file can be made beside the history.
        """
        while True:
            name = uuid.uuid4().hex
            try:
                descriptor = os.open(_file_of(history, name), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
            except OSError as error:
                raise refused(history, "written", error) from error
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            # Until it was locked, another planner could take the file for that of a dead owner and remove it.
            if os.fstat(descriptor).st_nlink:
                return cls(history, name, descriptor)
            os.close(descriptor)

    @staticmethod
    def names(history: Path) -> list[str]:
        """List the owners that have a file beside the history, whether they live or not."""
        before = f"{history.name}.owner-"
        try:
            return [path.name.removeprefix(before) for path in history.parent.iterdir() if path.name.startswith(before)]
        except OSError:
            # Opening the history says what is wrong with its folder.
            return []

    def note_worker(self, pid: int | None) -> None:
        """Write down the worker that this owner has now, or that it has none.

        A later planner ends it if this one dies.
        """
        started = None if pid is None else _started(pid)
        line = b"" if started is None else json.dumps({"pid": pid, "started": started}).encode()
        # The run matters more than the note: a worker ends by itself once its parent is gone, unless it is stopped.
        with contextlib.suppress(OSError):
            os.ftruncate(self._descriptor, 0)
            os.pwrite(self._descriptor, line, 0)

    @staticmethod
    def is_alive(history: Path, name: str) -> bool:
        """Tell whether the owner's process still runs; of one that ended, end the worker and remove the file."""
        path = _file_of(history, name)
        try:
            descriptor = os.open(path, os.O_RDONLY)
        except FileNotFoundError:
            return False
        except OSError:
            # The file of another user may not be readable, and then nothing says that its process has ended.
            return True
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        else:
            _end_worker_in(descriptor)
        finally:
            os.close(descriptor)
        with contextlib.suppress(OSError):
            path.unlink()
        return False

    def leave(self) -> None:
        """Give up the claim."""
        with contextlib.suppress(OSError):
            self._file.unlink()
            os.close(self._descriptor)
