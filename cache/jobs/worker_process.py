"""Start a worker, exchange JSON lines with it, notice how it ends, and kill it at any moment."""

import contextlib
import json
import os
import queue
import signal
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
# No message is so long, so a longer line is none of ours.
MAX_LINE = 1 << 20
POLL_S = 0.05


class WorkerFailed(Exception):
    """The worker died, hung or broke the protocol; the message says how."""


class Cancelled(Exception):
    """The job was cancelled and the worker killed."""


class WorkerProcess:
    """Control one child process that serves jobs until it is ended."""

    def __init__(self, command: Sequence[str], environment: Mapping[str, str]):
        self._process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            errors="replace",
            bufsize=1,
            cwd=ROOT,
            env=dict(environment),
            # Ctrl-C in the terminal must reach only the parent, which decides what happens to the job.
            start_new_session=True,
        )
        self._lines: queue.SimpleQueue[str | None] = queue.SimpleQueue()
        self._errors: deque[str] = deque(maxlen=40)
        threads = (self._read_lines, self._read_errors)
        self._threads = [threading.Thread(target=target, daemon=True) for target in threads]
        for thread in self._threads:
            thread.start()

    @property
    def pid(self) -> int:
        """Return the child's process id."""
        return self._process.pid

    @property
    def alive(self) -> bool:
        """Tell whether the child still runs."""
        return self._process.poll() is None

    def _read_lines(self) -> None:
        assert self._process.stdout is not None
        while line := self._process.stdout.readline(MAX_LINE):
            self._lines.put(line)
        self._lines.put(None)

    def _read_errors(self) -> None:
        assert self._process.stderr is not None
        while line := self._process.stderr.readline(MAX_LINE):
            self._errors.append(line.rstrip())

    def run(
        self,
        job: Mapping[str, Any],
        on_message: Callable[[dict[str, Any]], None],
        cancelled: threading.Event,
        silence_s: float,
    ) -> dict[str, Any]:
        """Run one job and return its measured values.

        Messages before the result go to `on_message`. The child is ended if this raises.

        Raises:
            Cancelled: `cancelled` was set.
            WorkerFailed: the child died, was silent for `silence_s` seconds, or sent a line that is no message.
        """
        try:
            return self._run(job, on_message, cancelled, silence_s)
        except BaseException:
            self.end()
            raise

    def _run(self, job, on_message, cancelled, silence_s) -> dict[str, Any]:
        self._send(job)
        last_heard = time.monotonic()
        while True:
            if cancelled.is_set():
                raise Cancelled
            try:
                line = self._lines.get(timeout=POLL_S)
            except queue.Empty:
                if time.monotonic() - last_heard > silence_s:
                    raise WorkerFailed(f"the worker said nothing for {silence_s:g} s and was ended") from None
                continue
            last_heard = time.monotonic()
            message = self._parse(line)
            if message["type"] == "result":
                return message["measured"]
            if message["type"] == "failed":
                raise WorkerFailed(str(message["reason"]))
            on_message(message)

    def _send(self, job: Mapping[str, Any]) -> None:
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(json.dumps(job) + "\n")
            self._process.stdin.flush()
        except OSError:
            raise WorkerFailed(self._cause_of_death()) from None

    def _parse(self, line: str | None) -> dict[str, Any]:
        if line is None:
            raise WorkerFailed(self._cause_of_death())
        try:
            message = json.loads(line)
        except ValueError:
            message = None
        if not isinstance(message, dict) or message.get("type") not in (
            "progress",
            "environment",
            "facts",
            "result",
            "failed",
        ):
            raise WorkerFailed(f"the worker sent a line that is no message: {line.strip()[:120]!r}")
        return message

    def _cause_of_death(self) -> str:
        code = self._process.wait(timeout=10)
        self._threads[1].join(timeout=1)
        if code < 0:
            name = signal.Signals(-code).name
            hint = ", as the system does when memory runs out" if name == "SIGKILL" else ""
            return f"the worker was ended by {name}{hint}"
        said = f": {self._errors[-1]}" if self._errors else ""
        return f"the worker ended with exit code {code}{said}"[:2000]

    def end(self) -> None:
        """Kill the child and wait until it has ended, so that its memory on a GPU is free."""
        # The child leads its own session, so this also kills the processes that it started.
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        with contextlib.suppress(subprocess.TimeoutExpired):
            # A process inside a broken driver may never end, and the queue must go on without it.
            self._process.wait(timeout=30)
        for thread in self._threads:
            thread.join(timeout=5)
        for stream in (self._process.stdin, self._process.stdout, self._process.stderr):
            if stream is not None:
                try:
                    stream.close()
                except BrokenPipeError:
                    # The buffer of stdin may hold a job that the child never read.
                    continue


def real_worker(device_kind: str) -> list[str]:
    """Return the command of a worker that runs real pipelines."""
    return [sys.executable, "-m", "cache.worker", device_kind]
