"""Test that the fast replay equals the dry run: in unlimited memory, within a capacity, and with early flushes."""

import random

import pytest

from planner.programs.assemble import events_of
from planner.programs.files import shipped
from planner.replay.allocator import CachingAllocator
from planner.replay.dry_run import dry_run
from planner.replay.fast_replay import loaded, peaks, script, warm_up
from planner.replay.kernels import KernelPolicy
from tests.unit.alternatives.test_sizes import random_request


class FlushingAllocator(CachingAllocator):
    """Flush the cache before every request for a segment."""

    def _reserve(self, size: int) -> None:
        self.empty_cache()
        super()._reserve(size)


CAPABILITIES = ((6, 1), (7, 5), (8, 6), (9, 0))


@pytest.mark.parametrize("seed", range(3))
def test_the_fast_replay_equals_the_dry_run(seed):
    rng, ended, retried = random.Random(seed), set(), 0
    warm_up()
    for _ in range(25):
        request, policy = random_request(rng, 500), KernelPolicy.of(rng.choice(CAPABILITIES))
        events = events_of(shipped(), request, rng.choice(["ends", "first"]))
        start = loaded(events)
        whole = dry_run(events, policy)
        assert peaks(script(events, policy, start)) == (whole.peak_reserved_bytes, whole.peak_allocated_bytes), request
        smallest = dry_run(events, policy.without_workspace(), allocator=FlushingAllocator())
        bare = script(events, policy.without_workspace(), start)
        expected = (smallest.peak_reserved_bytes, smallest.peak_allocated_bytes)
        assert peaks(bare, flushes_first=True) == expected, request
        played = script(events, policy, start)
        for _ in range(4):
            capacity = rng.randrange(smallest.peak_allocated_bytes * 98 // 100, whole.peak_reserved_bytes + 1)
            run = dry_run(events, policy, capacity)
            expected = (run.peak_reserved_bytes, run.peak_allocated_bytes) if run.outcome == "ok" else None
            assert peaks(played, capacity) == expected, (request, capacity)
            ended.add(run.outcome)
            retried += run.fallbacks > 0 and run.outcome == "ok"
    assert ended == {"ok", "out-of-memory"} and retried


def test_weights_alone_may_be_too_many():
    events = events_of(shipped(), random_request(random.Random(0)))
    policy = KernelPolicy.of((8, 0))
    played = script(events, policy, loaded(events))
    assert peaks(played, played.start.reserved_bytes - 1) is None
