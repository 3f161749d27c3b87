"""Measure the cost of ten thousand measured runs: import, answers, and grading."""

import random
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from uuid import UUID

from cache.exchange.lines import lines_of
from cache.machine.versions import installed
from cache.records import Measurement
from planner.programs.files import shipped
from planner.request import GenerationRequest
from tests.conftest import ROOT, make_environment
from tests.unit.measured import measured_of, run_of

COUNT, REQUESTS = 10_000, 300
CARDS = {"Tesla T4": "7.5", "NVIDIA A10": "8.6", "NVIDIA A100-SXM4-40GB": "8.0", "NVIDIA L4": "8.9"}

Row = tuple[str, str, str]


def write(path: Path) -> None:
    """Write ten thousand made-up runs of three hundred requests on four GPUs as lines of an export."""
    rng = random.Random(0)
    requests = [
        GenerationRequest(
            width=8 * rng.randrange(32, 200),
            height=8 * rng.randrange(32, 200),
            batch=rng.choice([1, 1, 1, 2, 4]),
            vae_tiling=rng.random() < 0.1,
        )
        for _ in range(REQUESTS)
    ]
    runs = []
    for number in range(COUNT):
        request, (card, capability) = rng.choice(requests), rng.choice(list(CARDS.items()))
        major, minor = capability.split(".")
        run = run_of(request, capability=(int(major), int(minor)), factor=1 + rng.gauss(0, 0.005))
        runs.append(
            Measurement(
                measurement_id=str(UUID(int=number, version=4)),
                created_at=f"2026-{1 + number % 10:02d}-{1 + number % 28:02d}T00:00:00.{number:06d}+00:00",
                request=request,
                environment=make_environment(
                    **installed() | {"card": card, "compute_capability": capability, "total_bytes": None}
                ),
                measured=replace(measured_of(run), weights_bytes=2**31),
            )
        )
    path.write_text("".join(f"{line.rstrip()}\n" for line in lines_of(runs)))


def seconds(*argv: str) -> float:
    """Return the seconds of one command in a new process."""
    began = time.perf_counter()
    subprocess.run([sys.executable, *argv], cwd=ROOT, check=True, capture_output=True)
    return time.perf_counter() - began


def many_runs(folder: Path) -> list[Row]:
    """Return rows of the table; ``PLANNER_DB`` must name ``many.db`` of the folder, where the history stays."""
    from cache.history.observations import gather
    from planner.accuracy.grading import grade

    write(folder / "many.jsonl")
    imported = seconds("-m", "planner", "history", "import", str(folder / "many.jsonl"))
    first, again = (seconds("-m", "planner", "fit", "--width", "1024") for _ in range(2))
    evidence = gather(shipped()).evidence
    began = time.perf_counter()
    graded = grade(evidence)
    took = time.perf_counter() - began
    return [
        ("Import of 10,000 runs", f"{imported:.1f} s", "python -m planner history import, cold"),
        ("fit with 10,000 runs in the history", f"{again:.2f} s", f"the first time {first:.1f} s"),
        ("Grading them, each without itself", f"{took:.1f} s", f"{len(graded):,} runs, with progress on Accuracy"),
    ]
