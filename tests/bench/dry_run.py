"""Measure the cost of the dry run, and its errors on the reference runs."""

import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from planner.programs.assemble import events_of, history_form
from planner.programs.files import read, shipped
from planner.replay.dry_run import allocated_peaks, dry_run
from planner.replay.kernels import KernelPolicy
from planner.request import GenerationRequest
from tests.conftest import ROOT

Row = tuple[str, str, str]

REQUEST = GenerationRequest(width=904, height=712)
AMPERE = KernelPolicy.of((8, 6))


def seconds(act: Callable[[], object], times: int) -> float:
    """Return the median milliseconds of this many calls."""
    taken = []
    for _ in range(times):
        began = time.perf_counter()
        act()
        taken.append(time.perf_counter() - began)
    return statistics.median(taken)


def unseen_sizes(count: int) -> list[tuple[int, int]]:
    rng = random.Random(0)
    return [(rng.randrange(32, 257), rng.randrange(32, 257)) for _ in range(count)]


def one_dry_run(height: int, width: int) -> None:
    """Run everything from a request to its peaks, including the allocator."""
    request = GenerationRequest(height=8 * height, width=8 * width)
    dry_run(events_of(shipped(), request), AMPERE)


def live_trace_seconds() -> float:
    """Trace the real modules on the meta device for one request: the best of three, without imports."""
    code = f"""
import time
from diffusers.utils import logging; logging.set_verbosity_error()
from planner.request import GenerationRequest
from planner.tracing.tracer import trace
request = GenerationRequest.from_dict({REQUEST.to_dict()!r})
taken = []
for _ in range(3):
    began = time.perf_counter()
    trace(request)
    taken.append(time.perf_counter() - began)
print(min(taken))
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True, capture_output=True, text=True)
    return float(done.stdout)


def compile_seconds() -> float:
    """Measure ``python -m planner compile --force``, with its imports."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "program"
        began = time.perf_counter()
        command = [sys.executable, "-m", "planner.tracing.compiler", str(path)]
        subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
        taken = time.perf_counter() - began
        assert read(path).routines
    return taken


def dry_runs() -> list[Row]:
    """Return the rows of the dry run for ``make bench``."""
    began = time.perf_counter()
    events_of(shipped(), REQUEST)
    first = time.perf_counter() - began
    sizes = iter(unseen_sizes(41))
    one = seconds(lambda: one_dry_run(*next(sizes)), 41)
    many = seconds(lambda: allocated_peaks(shipped(), REQUEST, unseen_sizes(1000), AMPERE), 3)
    live = live_trace_seconds()
    events = len(events_of(shipped(), history_form(REQUEST)).kinds)
    return [
        ("Programs: read, and put together for one request", f"{first * 1000:.0f} ms", f"{events:,} events"),
        ("One dry run of a size never seen", f"{one * 1000:.1f} ms", "allocator and all, median of 41"),
        ("1,000 sizes without allocator detail", f"{many * 1000:.0f} ms", "allocated peaks within 2 %"),
        (
            f"The live trace of one request, {REQUEST.steps} steps",
            f"{live * 1000:.0f} ms",
            f"{live / one:.0f} times one dry run",
        ),
        ("python -m planner compile --force", f"{compile_seconds():.0f} s", "in a process of its own"),
    ]
