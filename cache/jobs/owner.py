"""The owner of a job: a lock on a file beside the history, which the system drops when the process ends.

Process ids would not do: they are used again, and differ between containers that share a history. Start times change
with the clock.
"""

import contextlib
import fcntl
import os
import uuid
from pathlib import Path
from typing import Self

from cache.history.location import refused


def _file_of(history: Path, name: str) -> Path:
    return history.with_name(f"{history.name}.owner-{name}")


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
        name = uuid.uuid4().hex
        try:
            descriptor = os.open(_file_of(history, name), os.O_RDWR | os.O_CREAT, 0o644)
        except OSError as error:
            raise refused(history, "written", error) from error
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        return cls(history, name, descriptor)

    @staticmethod
    def is_alive(history: Path, name: str) -> bool:
        """Tell whether the owner's process still runs, and remove the file of one that ended."""
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
