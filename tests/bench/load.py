"""``python -m tests.bench.load``: let many people use Plan at the same time, and print how long they wait.

It speaks the protocol of Streamlit's browser side, so that fifty sessions need no fifty browsers. A session opens Plan,
and changes the width to sizes that nobody has asked for. Every wait is bounded, and each load has a server of its own.
"""

from __future__ import annotations

import asyncio
import itertools
import statistics
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
from streamlit.proto.BackMsg_pb2 import BackMsg
from streamlit.proto.ForwardMsg_pb2 import ForwardMsg
from websockets.asyncio.client import ClientConnection, connect

from planner.report.text import text_table
from tests.browser import server

AT_ONCE = (10, 25, 50)
PEOPLE, PAUSE_S, FOR_S = 50, 10, 40
# Nobody waits longer than this for a page; a session that does is counted and given up.
PATIENCE_S = 60

Row = tuple[str, str, str]


class Person:
    """One session of Plan: a WebSocket, and what the page told about itself."""

    def __init__(self, socket: ClientConnection, widths: Iterator[int]):
        self._socket, self._widths = socket, widths
        self._page, self._width = "", ""

    async def _settle(self) -> None:
        """Read what the page draws until its script has finished."""
        while True:
            message = ForwardMsg()
            message.ParseFromString(await self._socket.recv())
            kind = message.WhichOneof("type")
            if kind == "new_session":
                self._page = message.new_session.page_script_hash
            elif kind == "delta" and message.delta.new_element.WhichOneof("type") == "number_input":
                if message.delta.new_element.number_input.label == "Width, px":
                    self._width = message.delta.new_element.number_input.id
            elif kind == "delta" and message.delta.new_element.WhichOneof("type") == "exception":
                raise RuntimeError(message.delta.new_element.exception.message)
            elif kind == "script_finished" and message.script_finished == ForwardMsg.FINISHED_SUCCESSFULLY:
                return

    async def _ask(self, message: BackMsg) -> float:
        began = time.perf_counter()
        await self._socket.send(message.SerializeToString())
        async with asyncio.timeout(PATIENCE_S):
            await self._settle()
        return time.perf_counter() - began

    async def open(self) -> float:
        """Open Plan, and return the seconds until it is drawn."""
        message = BackMsg()
        message.rerun_script.query_string = ""
        return await self._ask(message)

    async def change(self) -> float:
        """Change the width to a new size, and return the seconds until the page is drawn."""
        assert self._width, "the page has no number field for the width"
        message = BackMsg()
        message.rerun_script.page_script_hash = self._page
        state = message.rerun_script.widget_states.widgets.add()
        state.id, state.double_value = self._width, next(self._widths)
        return await self._ask(message)


def _socket(address: str) -> connect:
    return connect(
        f"{address.replace('http', 'ws', 1)}/_stcore/stream",
        origin=address,  # ty: ignore[invalid-argument-type]
        subprotocols=["streamlit"],  # ty: ignore[invalid-argument-type]
        max_size=None,
        open_timeout=PATIENCE_S,
        ping_interval=None,
    )


def _widths() -> Iterator[int]:
    # img2img takes any size and rounds it down to a multiple of 8, so that every step is a request of its own.
    return itertools.cycle(range(520, 8192, 8))


async def opening(address: str, count: int) -> tuple[list[float], list[float], int]:
    """Open this many sessions at once, each of which then changes a value once.

    Return the seconds of opening and of changing, and how many sessions were given up.
    """
    widths, opened, changed, lost = _widths(), [], [], 0

    async def visit() -> None:
        nonlocal lost
        try:
            async with _socket(address) as socket:
                person = Person(socket, widths)
                opened.append(await person.open())
                changed.append(await person.change())
        except TimeoutError:
            lost += 1

    await asyncio.gather(*(visit() for _ in range(count)))
    return opened, changed, lost


async def working(address: str) -> tuple[list[float], int]:
    """Let people work: `PEOPLE` sessions, each with `PAUSE_S` seconds between its changes, for `FOR_S` seconds."""
    widths, changed, lost = _widths(), [], 0
    ends = time.monotonic() + FOR_S

    async def work(number: int) -> None:
        nonlocal lost
        await asyncio.sleep(number * PAUSE_S / PEOPLE)
        try:
            async with _socket(address) as socket:
                person = Person(socket, widths)
                await person.open()
                while time.monotonic() < ends:
                    await asyncio.sleep(PAUSE_S)
                    changed.append(await person.change())
        except TimeoutError:
            lost += 1

    await asyncio.gather(*(work(number) for number in range(PEOPLE)))
    return changed, lost


def _told(seconds: list[float], lost: int = 0) -> tuple[str, str]:
    if not seconds:
        return "none", f"{lost} given up after {PATIENCE_S} s"
    given_up = f", {lost} given up" if lost else ""
    return f"{statistics.median(seconds):.2f} s", f"median of {len(seconds)}, longest {max(seconds):.2f} s{given_up}"


def loads() -> Iterator[Row]:
    """Yield a row for each load."""
    for count in AT_ONCE:
        with tempfile.TemporaryDirectory() as folder, server(Path(folder) / "planner.db") as address:
            opened, changed, lost = asyncio.run(opening(address, count))
            yield (f"{count} sessions open Plan at once", *_told(opened, lost))
            yield (f"{count} sessions then change the width at once", *_told(changed, lost))
    with tempfile.TemporaryDirectory() as folder, server(Path(folder) / "planner.db") as address:
        changed, lost = asyncio.run(working(address))
        yield (f"{PEOPLE} people, {PAUSE_S} s between changes: a change", *_told(changed, lost))


if __name__ == "__main__":
    print(f"{psutil.cpu_count()} CPUs, load before {psutil.getloadavg()[0]:.1f}", flush=True)
    print(text_table(("load", "time", "note"), list(loads())))
