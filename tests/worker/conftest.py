import sys

import pytest

from cache.jobs import Jobs


@pytest.fixture
def jobs_with(store):
    """A queue whose workers follow a script; every worker is ended after the test."""
    opened = []

    def make(script: str, once=None, **options) -> Jobs:
        command = [sys.executable, "-m", "tests.worker.scripted", script, *([str(once)] if once else [])]
        jobs = Jobs(store, worker_command=lambda kind: command, **options)
        opened.append(jobs)
        return jobs

    yield make
    for jobs in opened:
        jobs.close()
