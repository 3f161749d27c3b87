"""Count what the HTTP answers do, in the text format that Prometheus reads; off unless ``PLANNER_METRICS=1``."""

from __future__ import annotations

from typing import TYPE_CHECKING

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.exposition import CONTENT_TYPE_LATEST

if TYPE_CHECKING:
    from pages.shared.guard.work import Work

# Most answers take milliseconds, and none may take longer than the deadline.
_SECONDS = (0.01, 0.03, 0.1, 0.3, 1, 3, 10, 30)


class Figures:
    """The figures of this server."""

    content_type = CONTENT_TYPE_LATEST

    def __init__(self) -> None:
        self._registry = CollectorRegistry()
        labels = ["answer"]
        self._answers = Counter(
            "planner_http_answers_total", "HTTP answers by status.", [*labels, "status"], registry=self._registry
        )
        self._seconds = Histogram(
            "planner_http_seconds", "Seconds to an HTTP answer.", labels, registry=self._registry, buckets=_SECONDS
        )
        self._work = {
            name: Gauge(f"planner_work_{name}", f"Questions that are {name}.", registry=self._registry)
            for name in ("running", "waiting")
        }

    def count(self, name: str, status: int, seconds: float) -> None:
        """Count one answer under its name, which no client chooses."""
        self._answers.labels(name, str(status)).inc()
        self._seconds.labels(name).observe(seconds)

    def text(self, work: Work) -> bytes:
        """Write all figures, and how much of this work is running and waiting now."""
        for name, gauge in self._work.items():
            gauge.set(getattr(work, name))
        return generate_latest(self._registry)


FIGURES = Figures()
