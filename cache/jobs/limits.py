"""Bound the queue of measuring jobs, so that one visitor cannot occupy it for everybody."""

from planner.errors import PlannerError


class QueueFull(PlannerError):
    """Report that no more runs may wait; the message names the limit, the setting that sets it, and the way out.

    `is_own` says that the limit is that of one asker, and not that of the whole queue.
    """

    def __init__(self, limit: int, setting: str, *, is_own: bool):
        self.limit, self.setting, self.is_own = limit, setting, is_own
        whose = "of yours " if is_own else ""
        runs = f"{limit} run{'' if limit == 1 else 's'}"
        super().__init__(
            f"the queue is full: {runs} {whose}may wait and do already ({setting}) - cancel one, or wait until one has "
            "begun"
        )

    def __reduce__(self):
        return _queue_full, (self.limit, self.setting, self.is_own)


def _queue_full(limit: int, setting: str, is_own: bool) -> QueueFull:
    return QueueFull(limit, setting, is_own=is_own)
