"""Lock a device against every other planner on this machine."""

import contextlib
import fcntl
import os
import threading
from collections.abc import Callable, Generator
from pathlib import Path

from cache.jobs.worker_process import Cancelled
from cache.machine.device import Device
from cache.refusals import why
from planner.errors import CannotWrite


@contextlib.contextmanager
def device_lock(device: Device, waiting: Callable[[], None], cancelled: threading.Event) -> Generator[None]:
    """Lock the device against other planners; call `waiting` once if it must wait.

    Raises:
        Cancelled: `cancelled` was set while waiting.
        CannotWrite: there is no place for the lock.
    """
    # TMPDIR would not do: it differs between users and batch jobs that share a card.
    path = Path("/tmp") / f"will-it-fit-{device.key}.lock"
    try:
        # Another user's file can be opened for reading and locked, but O_CREAT may be refused in a sticky directory.
        descriptor = os.open(path, os.O_RDONLY)
    except FileNotFoundError:
        try:
            descriptor = os.open(path, os.O_RDONLY | os.O_CREAT, 0o644)
        except OSError as error:
            raise CannotWrite(path, why(error), "free space there, or make its folder writable") from error
    try:
        told = False
        while True:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if not told:
                    waiting()
                    told = True
                if cancelled.wait(0.2):
                    raise Cancelled from None
        yield
    finally:
        os.close(descriptor)
