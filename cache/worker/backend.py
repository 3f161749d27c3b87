"""The interface between a worker and the backend that runs its jobs.

The worker runs as ``__main__``, and a class in a module that runs by ``-m`` and is imported as well exists twice: an
exception of one is never caught as the other. So classes that worker and backend share are in this module.
"""

from collections.abc import Callable
from typing import Any, Protocol

from cache.records import Measured

# It is called with the phase that begins, and with details of it by name.
Report = Callable[..., None]


class DeviceFull(Exception):
    """The GPU had no room even for the CUDA context and torch's own state."""


class Backend(Protocol):
    """Run jobs on one device, one after another."""

    def environment(self) -> dict[str, Any]:
        """Return the facts about the device that only the worker knows."""

    def measure(self, job: dict[str, Any], report: Report) -> Measured:
        """Run one job.

        Raises:
            DeviceFull: the device had no room before the run could begin.
        """
