"""Read the limits that environment variables set; docs/deploy.md lists them."""

import os
from typing import NamedTuple

from planner.errors import InvalidArgument


class Setting(NamedTuple):
    """Hold a limit: the variable that sets it, its default, and its least value."""

    name: str
    default: int
    low: int = 1

    @property
    def value(self) -> int:
        """Read the limit as it is set now.

        Raises:
            InvalidArgument: the variable is no whole number, or below the least value.
        """
        given = os.environ.get(self.name, "").strip()
        if not given:
            return self.default
        # int() takes longer texts, signs and digits of other scripts as well.
        value = int(given) if given.isascii() and given.isdigit() and len(given) <= 18 else -1
        if value < self.low:
            rule = f"must be a whole number of at least {self.low}"
            raise InvalidArgument(self.name, rule, given, f"unset it for {self.default}")
        return value


MAX_WAITING = Setting("PLANNER_MAX_WAITING", 10)
MAX_WAITING_EACH = Setting("PLANNER_MAX_WAITING_EACH", 3)
# No run of the built-in grid takes so long on a T4; the first run with real weights also downloads them.
MAX_SECONDS = Setting("PLANNER_MAX_SECONDS", 7200)
# A request of 8192x8192 pixels at the largest batch has so many, so by default nothing is refused.
MAX_PIXELS = Setting("PLANNER_MAX_PIXELS", 8192 * 8192 * 128, 64 * 64)
MAX_STEPS = Setting("PLANNER_MAX_STEPS", 1000)
ALL = (MAX_WAITING, MAX_WAITING_EACH, MAX_SECONDS, MAX_PIXELS, MAX_STEPS)
