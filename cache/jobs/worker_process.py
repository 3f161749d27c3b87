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

from cache.jobs.host_memory import killed_for_memory
from cache.jobs.messages import NoMessage, measured_in, message_in
from cache.records import Measured
from cache.settings import MAX_SECONDS

ROOT = Path(__file__).parents[2]
# No message is so long, so a longer line is none of ours.
MAX_LINE = 1 << 20
# So many lines wait at most: a worker that floods its pipe is held up and does not fill this process's memory.
MAX_LINES = 1000
POLL_S = 0.05
# A worker has so long to end by itself before it is killed.
GRACE_S = 2.0


class WorkerFailed(Exception):
    """The worker died, hung or broke the protocol; the message says how."""


class HostMemoryRanOut(WorkerFailed):
    """The system killed the worker, because the memory of the host ran out."""


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
        self._kills_before = killed_for_memory()
        self._ended = False
        self._lines: queue.Queue[str | None] = queue.Queue(MAX_LINES)
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
            self._put(line)
        self._put(None)

    def _put(self, line: str | None) -> None:
        while not self._ended:
            with contextlib.suppress(queue.Full):
                self._lines.put(line, timeout=POLL_S)
                return

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
        limit_s: float,
    ) -> Measured:
        """Run one job and return its result.

        Messages before the result go to `on_message`. The child is ended if this raises.

        Raises:
            Cancelled: `cancelled` was set.
            WorkerFailed: the child died, was silent for `silence_s` seconds, took longer than `limit_s` seconds, or
                sent a line that is no message.
        """
        try:
            return self._run(job, on_message, cancelled, silence_s, limit_s)
        except BaseException:
            self.end()
            raise

    def _run(self, job, on_message, cancelled, silence_s, limit_s) -> Measured:
        with contextlib.suppress(queue.Empty):
            # A second result of the job before would otherwise be taken for that of this one.
            line = self._lines.get_nowait()
            raise WorkerFailed(self._cause_of_death() if line is None else f"the worker spoke unasked: {_begin(line)}")
        self._send(job)
        began = last_heard = time.monotonic()
        while True:
            if cancelled.is_set():
                raise Cancelled
            if time.monotonic() - began > limit_s:
                way = f"; {MAX_SECONDS.name} sets the limit" if limit_s == MAX_SECONDS.value else ""
                raise WorkerFailed(f"the run took longer than {limit_s:g} s and was ended{way}")
            try:
                line = self._lines.get(timeout=POLL_S)
            except queue.Empty:
                if time.monotonic() - last_heard > silence_s:
                    raise WorkerFailed(f"the worker said nothing for {silence_s:g} s and was ended") from None
                continue
            last_heard = time.monotonic()
            message = self._parse(line)
            if message["type"] == "result":
                try:
                    return measured_in(message["measured"])
                except NoMessage as error:
                    raise WorkerFailed(f"the worker sent a result that is none ({error})"[:2000]) from None
            if message["type"] == "failed":
                raise WorkerFailed(message["reason"][:2000])
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
            return message_in(line)
        except NoMessage:
            raise WorkerFailed(f"the worker sent a line that is no message: {_begin(line)}") from None

    def _cause_of_death(self) -> str:
        """Say how the worker ended.

        Raises:
            HostMemoryRanOut: the system killed it for memory.
            WorkerFailed: it has closed its pipe and still runs.
        """
        try:
            code = self._process.wait(timeout=10)
        except subprocess.TimeoutExpired:
            raise WorkerFailed("the worker closed its pipe and did not end") from None
        self._threads[1].join(timeout=1)
        if code < 0:
            name = signal.Signals(-code).name
            if code == -signal.SIGKILL and self._was_killed_for_memory():
                raise HostMemoryRanOut("the host's memory ran out: the system killed the worker (oom_kill)")
            hint = ", as the system does when memory runs out" if name == "SIGKILL" else ""
            return f"the worker was ended by {name}{hint}"
        said = f": {self._errors[-1]}" if self._errors else ""
        return f"the worker ended with exit code {code}{said}"[:2000]

    def _was_killed_for_memory(self) -> bool:
        now = killed_for_memory()
        return now is not None and self._kills_before is not None and now > self._kills_before

    def end(self, grace_s: float = GRACE_S) -> None:
        """End the child, or kill it after a grace, and wait until it has ended.

        Its memory on a GPU is free then.
        """
        self._ended = True
        # The child leads its own session, so a signal also reaches the processes that it started.
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGTERM)
        with contextlib.suppress(subprocess.TimeoutExpired):
            # A child that is stopped, or ignores the signal, does not end by it.
            self._process.wait(timeout=grace_s)
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


def _begin(line: str) -> str:
    return repr(line.strip()[:120])


def real_worker(device_kind: str) -> list[str]:
    """Return the command of a worker that runs real pipelines."""
    return [sys.executable, "-m", "cache.worker", device_kind]
