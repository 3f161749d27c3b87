"""Print how well calibration recovers simulated GPUs and reference runs: errors, coverage, widths, seconds.

``python -m tests.bench.calibration [SEEDS]`` is what a change of `planner/calibration/calibrate.py` is judged by.
"""

import itertools
import sys
import time
from statistics import median

from planner.calibration.evidence import Evidence
from planner.request import GenerationRequest
from planner.units import MIB
from tests.accuracy import graded_runs
from tests.unit.measured import ORDINARY, TARGETS, at, curve, evidence_of, history, peak_at, target

SMALL = [
    *(GenerationRequest(width=w, height=h) for w, h in ((256, 256), (256, 384), (384, 384), (512, 384), (512, 512))),
    *(GenerationRequest(task="txt2img", width=w, height=h) for w, h in ((256, 320), (384, 512), (512, 512))),
]
SIZES = {"ordinary": ORDINARY, "small": SMALL}
COUNTS, FRACTIONS, NOISES, CONSTANTS = (3, 5, 12), (0.0, 0.3, 0.6, 0.8, 1.0), (0.002, 0.01), (0, 64 * MIB)
OUTLIERS = 0.05


def recovered(seeds: int, sizes: str, count: int, fraction: float, noise: float, constant: float) -> list[tuple]:
    """Return, for each history and target, its error, whether the interval holds the truth, and its width."""
    rows = []
    for seed in range(seeds):
        runs = history(
            count, seed, fraction=fraction, constant=constant, noise=noise, absurd=OUTLIERS, requests=SIZES[sizes]
        )
        found = evidence_of(runs).calibration(runs[0].capability)
        assert found is not None
        for request in TARGETS:
            answer = found.answer(curve(request), target(request))
            allocated = peak_at(request, fraction) + constant
            reserved = at(curve(request).reserved, fraction) + constant
            point = answer.allocated_bytes
            rows.append(
                (
                    abs(point / allocated - 1),
                    answer.allocated[0] <= allocated <= answer.allocated[1],
                    answer.reserved[0] <= reserved <= answer.reserved[1],
                    reserved <= answer.reserved[1],
                    (answer.allocated[1] - answer.allocated[0]) / point,
                    answer.reserved[1] / reserved - 1,
                )
            )
    return rows


HEADER = "| | median error | within 1 % | 90 % below | largest | allocated | reserved | need | width | need over |"


def line(name: str, rows: list[tuple]) -> str:
    """Return one row of the table."""
    errors, allocated, reserved, need, widths, over = zip(*rows, strict=True)
    share = [f"{sum(held) / len(held):.1%}" for held in (allocated, reserved, need)]
    return (
        f"| {name} | {median(errors):.3%} | {sum(e < 0.01 for e in errors) / len(errors):.1%} "
        f"| {sorted(errors)[int(0.9 * len(errors))]:.2%} | {max(errors):.2%} | {' | '.join(share)} "
        f"| {median(widths):.2%} | {median(over):.2%} |"
    )


def simulations(seeds: int) -> None:
    """Print the recovery of simulated GPUs, first the one of all earlier figures, then all together."""
    print(HEADER, "|---|" + "---:|" * 9, sep="\n")
    for sizes, count in itertools.product(SIZES, COUNTS):
        rows = recovered(4 * seeds, sizes, count, 0.6, 0.01, 0)
        print(line(f"fraction 0.6, noise 1 %, {sizes}, {count} runs", rows), flush=True)
    found = {}
    for key in itertools.product(SIZES, COUNTS, FRACTIONS, NOISES, CONSTANTS):
        sizes, count, fraction, noise, constant = key
        found[key] = recovered(seeds, sizes, count, fraction, noise, constant)
    names = ("sizes", "runs", "fraction", "noise", "constant")
    for place, name in enumerate(names):
        for value in dict.fromkeys(key[place] for key in found):
            rows = [row for key, of in found.items() if key[place] == value for row in of]
            print(line(f"{name} {value}", rows), flush=True)
    for constant, sizes, count in itertools.product(CONSTANTS, SIZES, COUNTS):
        rows = [row for key, of in found.items() if key[:2] == (sizes, count) and key[4] == constant for row in of]
        print(line(f"constant {constant // MIB} MiB, {sizes}, {count} runs", rows), flush=True)
    print(line("all", [row for of in found.values() for row in of]), flush=True)


def references() -> None:
    """Print error, coverage and width on the runs that ship, each left out."""
    graded = graded_runs()
    moved = [one for one in graded if abs(one.predicted["calibrated"] / one.predicted["dry-run"] - 1) > 1e-6]
    widths = [(one.interval_bytes[1] - one.interval_bytes[0]) / one.measured_bytes for one in graded]
    reserved = [one.is_reserved_covered for one in graded if one.is_reserved_covered is not None]
    for basis in ("dry-run", "calibrated"):
        errors = [abs(one.error(basis)) for one in graded]
        print(f"{basis}: median {median(errors):.3%}, mean {sum(errors) / len(errors):.3%}, largest {max(errors):.2%}")
    print(
        f"{len(graded)} runs, {len(moved)} moved; inside {sum(one.is_covered for one in graded)}, reserved "
        f"{sum(reserved)} of {len(reserved)}; width median {median(widths):.2%}, mean {sum(widths) / len(widths):.2%}"
    )


def seconds() -> None:
    """Print the seconds of one answer with 10, 100 and 1,000 runs in memory and their curves known."""
    request = TARGETS[2]
    for count in (10, 100, 1000):
        runs = history(count, 1, fraction=0.6, requests=ORDINARY)
        evidence: Evidence = evidence_of(runs)
        began = time.perf_counter()
        calibration = evidence.calibration(runs[0].capability)
        assert calibration is not None
        calibration.answer(curve(request), target(request))
        print(f"{count} runs: {1000 * (time.perf_counter() - began):.0f} ms")


if __name__ == "__main__":
    references()
    for one in {*ORDINARY, *SMALL, *TARGETS}:
        curve(one)
    seconds()
    simulations(int(sys.argv[1]) if len(sys.argv) > 1 else 50)
