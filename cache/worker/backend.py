"""What a worker serves, and how a backend says that the GPU has no room for it.

The worker runs as ``__main__``. What it shares with its backend stands here: a class that is defined in a module run by
``-m`` and imported from there as well exists twice, and an exception of the one is never caught as the other.
"""

from collections.abc import Callable
from typing import Any, Protocol

from cache.records import Measured

# Told the phase that begins, and by name whatever is known of it.
Report = Callable[..., None]


class DeviceFull(Exception):
    """The GPU had no room even for what every run shares: the CUDA context and torch's own state."""


class Backend(Protocol):
    """Runs jobs on one device, one after another."""

    def environment(self) -> dict[str, Any]:
        """What is known of the device only in the worker."""

    def measure(self, job: dict[str, Any], report: Report) -> Measured:
        """Run one job.

        Raises:
            DeviceFull: the device had no room before the run could begin.
        """
