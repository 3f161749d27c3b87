"""The verdict that a measured run comes to, and the exit code of `verify`."""

from cache.records import Measurement
from planner.answer import EXIT_CODES, Verdict


def verdict_of(measurement: Measurement) -> Verdict:
    """Give the verdict of a run: fits, tight with allocator retries, no, or unknown."""
    measured = measurement.measured
    if measured.outcome == "ok":
        return "tight" if measured.num_alloc_retries else "fits"
    return "no" if measured.outcome == "out-of-memory" else "unknown"


def exit_code_of(measurement: Measurement) -> int:
    """Give the contract's exit code for `verdict_of`."""
    return EXIT_CODES[verdict_of(measurement)]
