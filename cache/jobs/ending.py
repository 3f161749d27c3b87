"""End the jobs of this process before it goes, however it is asked to go.

Every queue is closed by `close_all`: at the interpreter's exit, and on SIGTERM or SIGINT where `signals_as_exit` is on.
A server whose own handlers receive these signals calls `close_all` as it shuts down.
"""

import atexit
import contextlib
import signal
import threading
import weakref
from collections.abc import Generator
from types import FrameType
from typing import Protocol


class Closable(Protocol):
    """A queue that can be closed more than once."""

    def close(self) -> None:
        """End its jobs and its worker."""


_open: "weakref.WeakSet[Closable]" = weakref.WeakSet()


def register(queue: Closable) -> None:
    """Close this queue by `close_all` too, unless it is gone by then."""
    _open.add(queue)


def close_all() -> None:
    """Close all queues of this process; jobs that are open are closed as stopped with the planner."""
    for queue in list(_open):
        # One that cannot be closed must not leave another one open.
        with contextlib.suppress(Exception):
            queue.close()


atexit.register(close_all)


class Terminated(SystemExit):
    """Ask the main thread to end, since the process received SIGTERM; the exit code is that of a shell."""


def _raise(number: int, _frame: FrameType | None) -> None:
    # A second signal must not interrupt the closing that the first began.
    signal.signal(number, signal.SIG_IGN)
    raise Terminated(128 + number)


@contextlib.contextmanager
def signals_as_exit() -> Generator[None]:
    """Turn SIGTERM and SIGHUP into an exception inside, so that jobs are closed; SIGINT is one already.

    Nothing changes outside the main thread, which alone may set handlers, and where another handler is set.
    """
    numbers = [signal.SIGTERM, signal.SIGHUP] if threading.current_thread() is threading.main_thread() else []
    before = {number: signal.getsignal(number) for number in numbers}
    ours = [number for number, handler in before.items() if handler is signal.SIG_DFL]
    for number in ours:
        signal.signal(number, _raise)
    try:
        yield
    finally:
        for number in ours:
            signal.signal(number, signal.SIG_DFL)
