"""Lock a device against every other planner of this user on this machine."""

import contextlib
import fcntl
import os
import platform
import threading
from collections.abc import Callable, Generator

from cache.jobs.worker_process import Cancelled
from cache.machine.device import Device
from cache.places import state_folder
from cache.refusals import why
from planner.errors import CannotWrite


@contextlib.contextmanager
def device_lock(device: Device, waiting: Callable[[], None], cancelled: threading.Event) -> Generator[None]:
    """Lock the device against other planners of this user; call `waiting` once if it must wait.

    Raises:
        Cancelled: `cancelled` was set while waiting.
        CannotWrite: there is no place for the lock.
    """
    # The name has the host's, because a home directory may be on several. The folder is this user's alone: in a shared
    # one any user could hold the lock for ever.
    path = state_folder() / f"device-{platform.node() or 'host'}-{device.key}.lock"
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
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
