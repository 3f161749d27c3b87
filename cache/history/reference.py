"""Read the reference runs, which others measured and which ship with the planner, as an import is read."""

from functools import cache

from cache.exchange.lines import lines_in, read_runs
from cache.history.location import REFERENCE_RUNS
from cache.records import Measurement


@cache
def reference_runs() -> tuple[Measurement, ...]:
    """Read every run that ships, in the order of the files.

    Peaks of the VAE alone are above what stood before.

    Raises:
        NotARun: a file is damaged.
    """
    found: list[Measurement] = []
    for path in sorted(REFERENCE_RUNS.glob("*.jsonl")):
        with path.open("rb") as file:
            found += read_runs(lines_in(file), "reference")
    return tuple(found)


@cache
def sources() -> dict[str, str]:
    """Find where each run that ships was published, by its id.

    Raises:
        NotARun: a file is damaged.
    """
    return {run.measurement_id: run.source for run in reference_runs() if run.source}
