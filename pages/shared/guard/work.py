"""Do expensive work in a few threads, once for equal questions, and stop it when nobody waits any longer.

The work is a function of a `Token`. It calls `Token.check` wherever it may stop, which is between two replays, and
reports how far it is. Whoever asks holds a `Ticket`. When the last ticket of a piece of work is given back, its token
is cancelled. This file knows neither HTTP nor pages, so both can use it.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections import deque
from collections.abc import Callable, Hashable
from concurrent.futures import Future, InvalidStateError
from contextlib import suppress
from dataclasses import dataclass, field
from math import ceil
from types import TracebackType
from typing import Any, Generic, Self, TypeVar

from planner.errors import PlannerError

_Answer = TypeVar("_Answer")


class Busy(PlannerError):
    """Report that too many questions wait already; `retry_after_s` is when to ask again, in whole seconds."""

    def __init__(self, retry_after_s: int):
        self.retry_after_s = retry_after_s
        super().__init__(f"too many questions wait already - ask again in {retry_after_s} s")


class Stopped(PlannerError):
    """Report work that was stopped: nobody waits for it any longer, or the app is shutting down."""


class TooLate(PlannerError):
    """Report an answer that did not come within `seconds`."""

    def __init__(self, seconds: float):
        self.seconds = seconds
        super().__init__(
            f"the answer took longer than {seconds:g} s - name fewer GPUs, list fewer images, or ask for smaller ones"
        )


class Token:
    """Tell a piece of work when to stop, and hear how far it is."""

    def __init__(self) -> None:
        self._cancelled = threading.Event()
        self.done, self.of = 0, 0

    def cancel(self) -> None:
        """Ask the work to stop at its next check."""
        self._cancelled.set()

    @property
    def is_cancelled(self) -> bool:
        """Tell whether the work was asked to stop."""
        return self._cancelled.is_set()

    def check(self) -> None:
        """Stop here if the work was cancelled.

        Raises:
            Stopped: it was.
        """
        if self.is_cancelled:
            raise Stopped("nobody waits for this answer any longer")

    def expect(self, steps: int) -> None:
        """Report how many steps the work has."""
        self.of = steps

    def step(self) -> None:
        """Check, and report that the next step begins.

        Raises:
            Stopped: the work was cancelled.
        """
        self.check()
        self.done += 1

    @property
    def progress(self) -> float:
        """Give the share of the steps that were begun, 0 to 1; 0 while their number is unknown."""
        return min(1.0, self.done / self.of) if self.of else 0.0


@dataclass(eq=False)
class _Piece:
    """One piece of work: what is asked, how it is done, and who waits for it."""

    key: Hashable
    do: Callable[[Token], Any]
    token: Token = field(default_factory=Token)
    future: Future[Any] = field(default_factory=Future)
    waiting: int = 0


def awaited(future: Future[_Answer]) -> asyncio.Future[_Answer]:
    """Make a future of the running event loop that follows this one, and must not be cancelled either.

    Nobody needs to fetch its error: an asker that has left does not.
    """
    coming = asyncio.wrap_future(future)
    coming.add_done_callback(lambda done: None if done.cancelled() else done.exception())
    return coming


class Ticket(Generic[_Answer]):
    """One asker's claim to an answer; leaving its ``with`` block gives it back."""

    def __init__(self, work: Work, piece: _Piece):
        self._work, self._piece = work, piece
        self._is_held = True

    @property
    def token(self) -> Token:
        """Give the token of the work, for its progress."""
        return self._piece.token

    @property
    def future(self) -> Future[_Answer]:
        """Give the future of the answer. Others may wait for the same, so it must not be cancelled."""
        return self._piece.future

    def answer(self, seconds: float) -> _Answer:
        """Wait for the answer.

        Raises:
            TooLate: it did not come within these seconds.
        """
        try:
            return self.future.result(seconds)
        except TimeoutError:
            if self.future.done():
                raise
            raise TooLate(seconds) from None

    def give_back(self) -> None:
        """Wait no longer. Once nobody does, the work stops."""
        if self._is_held:
            self._is_held = False
            self._work._leave(self._piece)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.give_back()


class Work:
    """Run pieces of work in `threads` threads; `most_waiting` may wait for one.

    The threads are daemons, so a replay that runs cannot keep the process from ending.
    """

    def __init__(self, threads: int, most_waiting: int, name: str = "work"):
        self._name, self._threads, self._most_waiting = name, threads, most_waiting
        self._changed = threading.Condition()
        self._queue: deque[_Piece] = deque()
        self._pieces: dict[Hashable, _Piece] = {}
        self._idle, self._started, self._running = 0, 0, 0
        self._is_closed = False
        # A running mean of the seconds that a piece took.
        self._usual_s = 1.0

    @property
    def waiting(self) -> int:
        """Count the pieces that wait for a thread."""
        return len(self._queue)

    @property
    def running(self) -> int:
        """Count the pieces that are being worked on."""
        return self._running

    def ask(self, key: Hashable, do: Callable[[Token], _Answer]) -> Ticket[_Answer]:
        """Take a piece of work, or join an equal one that is not done yet.

        Raises:
            Busy: as many pieces wait as may.
            Stopped: the app is shutting down.
        """
        with self._changed:
            if self._is_closed:
                raise Stopped("the app is shutting down")
            piece = self._pieces.get(key)
            if piece is None:
                ahead = len(self._queue) + self._running
                if ahead >= self._threads + self._most_waiting:
                    raise Busy(max(1, ceil(ahead * self._usual_s / self._threads)))
                piece = self._pieces[key] = _Piece(key, do)
                self._queue.append(piece)
                self._start_thread()
                self._changed.notify()
            piece.waiting += 1
            return Ticket(self, piece)

    def open(self) -> None:
        """Take work again after `close`, as a server does that starts anew in the same process."""
        with self._changed:
            self._is_closed = False

    def close(self) -> None:
        """Stop everything at its next check, answer all who wait with `Stopped`, and take no more work."""
        with self._changed:
            self._is_closed = True
            pieces = list(self._pieces.values())
            self._pieces.clear()
            self._queue.clear()
            self._changed.notify_all()
        for piece in pieces:
            piece.token.cancel()
            _settle(piece, error=Stopped("the app is shutting down"))

    def _start_thread(self) -> None:
        if self._idle < len(self._queue) and self._started < self._threads:
            self._started += 1
            threading.Thread(target=self._serve, name=f"{self._name}-{self._started}", daemon=True).start()

    def _leave(self, piece: _Piece) -> None:
        with self._changed:
            piece.waiting -= 1
            if piece.waiting:
                return
            piece.token.cancel()
            # The next equal question must not join work that is being stopped.
            if self._pieces.get(piece.key) is piece:
                del self._pieces[piece.key]
            if piece in self._queue:
                self._queue.remove(piece)

    def _serve(self) -> None:
        while True:
            with self._changed:
                self._idle += 1
                while not self._queue and not self._is_closed:
                    self._changed.wait()
                self._idle -= 1
                if not self._queue:
                    self._started -= 1
                    return
                piece = self._queue.popleft()
                self._running += 1
            began = time.monotonic()
            try:
                answer = piece.do(piece.token)
            # Whatever the work raises belongs to those who wait for it.
            except BaseException as error:
                self._done(piece, began)
                _settle(piece, error=error)
            else:
                self._done(piece, began)
                _settle(piece, answer=answer)

    def _done(self, piece: _Piece, began: float) -> None:
        with self._changed:
            self._running -= 1
            self._usual_s += (time.monotonic() - began - self._usual_s) / 8
            if self._pieces.get(piece.key) is piece:
                del self._pieces[piece.key]


def _settle(piece: _Piece, answer: Any = None, error: BaseException | None = None) -> None:
    """Give those who wait an answer or an error; closing may have done so already."""
    with suppress(InvalidStateError):
        if error is None:
            piece.future.set_result(answer)
        else:
            piece.future.set_exception(error)
