"""Serve jobs in the child process, the only place where a real pipeline runs.

    python -m cache.worker cuda|cpu

Jobs are JSON lines on stdin, and messages are JSON lines on a copy of stdout; what libraries print goes to stderr.
End of file on stdin means that the parent has ended: the process then ends at once, in the middle of a run as well.
"""

import json
import os
import queue
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import asdict
from typing import Any, TextIO

from cache.records import Measured
from cache.worker.backend import Backend, DeviceFull


def _jobs_from(stdin: TextIO) -> Iterator[dict[str, Any]]:
    lines: queue.SimpleQueue[str] = queue.SimpleQueue()

    def read() -> None:
        for line in stdin:
            lines.put(line)
        # A kernel or a download in the main thread would delay sys.exit.
        os._exit(0)

    threading.Thread(target=read, daemon=True).start()
    while True:
        yield json.loads(lines.get())


def serve(make_backend: Callable[[], Backend]) -> None:
    """Measure jobs one after another until the parent goes away."""
    # A private copy of stdout carries the messages, and file descriptor 1 itself leads to stderr from now on.
    channel = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)

    one_at_a_time = threading.Lock()

    def send(message: dict[str, Any]) -> None:
        with one_at_a_time:
            channel.write(json.dumps(message) + "\n")

    backend: Backend | None = None
    for job in _jobs_from(sys.stdin):

        def report(phase: str, **detail: Any) -> None:
            kind = "facts" if phase == "facts" else "progress"
            send({"type": kind, "phase": phase, **detail})

        try:
            if backend is None:
                report("loading", detail="libraries")
                backend = make_backend()
            send({"type": "environment", **backend.environment()})
            send({"type": "result", "measured": asdict(backend.measure(job, report))})
        except DeviceFull as error:
            full = Measured(outcome="out-of-memory", reason=str(error), ended_in="loading")
            send({"type": "result", "measured": asdict(full)})
        except Exception as error:
            send({"type": "failed", "reason": f"{type(error).__name__}: {error}"[:2000]})
            # The state of the device is unknown now, so the next job gets a new process.
            raise


def main() -> None:
    """Serve real pipelines on the device kind named on the command line."""
    kind = sys.argv[1]

    def make_backend() -> Backend:
        from diffusers.utils import logging as diffusers_logging
        from transformers.utils import logging as transformers_logging

        # Their warnings (casts, missing torchvision) are about what this worker does on purpose. Errors still show.
        diffusers_logging.set_verbosity_error()
        transformers_logging.set_verbosity_error()
        # Loading torch takes seconds, and the parent is told before that the job began.
        from cache.worker.measure import PipelineBackend

        return PipelineBackend(kind)

    serve(make_backend)
