"""Let the scripts of pages run one after another, because they share one interpreter.

Scripts that run at once slow each other down, switch threads all the time, and keep the event loop from sending what is
drawn already. One after another, the first visitor is served at once, and the last no later.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Generator
from contextlib import contextmanager

# A script that holds its turn longer than this, as with many tiles or a slow disk, holds up nobody any more.
PATIENCE_S = 10.0


class Turns:
    """Give turns to threads, one at a time, in the order in which they ask.

    A turn is an order and no lock: who has waited for `patience_s` seconds goes on without one.
    """

    def __init__(self, patience_s: float = PATIENCE_S):
        self._patience_s, self._is_free = patience_s, True
        self._lock = threading.Lock()
        self._queue: deque[threading.Event] = deque()

    @property
    def waiting(self) -> int:
        """Count the threads that wait for a turn."""
        return len(self._queue)

    def _take(self) -> bool:
        """Wait for a turn, and return whether it came in time."""
        with self._lock:
            if self._is_free:
                self._is_free = False
                return True
            mine = threading.Event()
            self._queue.append(mine)
        mine.wait(self._patience_s)
        with self._lock:
            # Whoever gives the turn on takes the event out of the queue, perhaps just as the wait ends.
            if mine not in self._queue:
                return True
            self._queue.remove(mine)
            return False

    def _give(self) -> None:
        with self._lock:
            if self._queue:
                self._queue.popleft().set()
            else:
                self._is_free = True

    @contextmanager
    def taken(self) -> Generator[None]:
        """Wait for a turn, and hold it within this block."""
        is_mine = self._take()
        try:
            yield
        finally:
            if is_mine:
                self._give()


TURNS = Turns()
