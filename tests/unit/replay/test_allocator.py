import itertools
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from planner.replay.allocator import (
    LARGE_SEGMENT,
    MAX_UNSPLIT_BYTES,
    MIN_BLOCK,
    MIN_LARGE_ALLOC,
    ROUND_LARGE,
    SMALL_SEGMENT,
    SMALL_SIZE,
    CachingAllocator,
    OutOfDeviceMemory,
)
from planner.units import MIB

sizes = st.one_of(st.integers(1, 4096), st.integers(1, 4 * MIB), st.integers(1, 200 * MIB))


def mib(allocator: CachingAllocator) -> tuple[float, float]:
    return allocator.allocated_bytes / MIB, allocator.reserved_bytes / MIB


def blocks_by_address(allocator, blocks) -> list:
    free = [block for pool in (allocator.small, allocator.large) for _, _, block in pool.free]
    return sorted([*blocks, *free], key=lambda block: block.address)


@pytest.mark.parametrize(
    ("request_bytes", "allocated", "reserved"),
    [
        (1, MIN_BLOCK, SMALL_SEGMENT),
        (MIN_BLOCK, MIN_BLOCK, SMALL_SEGMENT),
        (MIN_BLOCK + 1, 2 * MIN_BLOCK, SMALL_SEGMENT),
        (SMALL_SIZE, SMALL_SIZE, SMALL_SEGMENT),
        (SMALL_SIZE + 1, SMALL_SIZE + MIN_BLOCK, LARGE_SEGMENT),
        (MIN_LARGE_ALLOC - MIN_BLOCK, MIN_LARGE_ALLOC - MIN_BLOCK, LARGE_SEGMENT),
        # From 10 MiB on a segment of its own, in steps of 2 MiB; what is left of it is too little to split off.
        (MIN_LARGE_ALLOC, MIN_LARGE_ALLOC, MIN_LARGE_ALLOC),
        (MIN_LARGE_ALLOC + 1, MIN_LARGE_ALLOC + MIN_BLOCK, MIN_LARGE_ALLOC + ROUND_LARGE),
        (11 * MIB, 12 * MIB, 12 * MIB),
        (11 * MIB - MIN_BLOCK, 11 * MIB - MIN_BLOCK, 12 * MIB),
    ],
)
def test_rounding_pools_and_segments(request_bytes, allocated, reserved):
    allocator = CachingAllocator()
    allocator.malloc(request_bytes)
    assert (allocator.allocated_bytes, allocator.reserved_bytes) == (allocated, reserved)


def test_the_best_fit_is_the_smallest_and_then_the_lowest():
    allocator = CachingAllocator()
    large, low, high = (allocator.malloc(size * MIB) for size in (30, 20, 20))
    for block in (large, high, low):
        allocator.free(block)
    assert allocator.malloc(15 * MIB).address == low.address
    # What is left of it, 5 MiB, fits better than any whole one.
    assert allocator.malloc(4 * MIB).address == low.address + 15 * MIB
    assert allocator.malloc(20 * MIB).address == high.address


def test_a_freed_block_merges_with_free_neighbours_of_its_segment_only():
    allocator = CachingAllocator()
    first, second, third = (allocator.malloc(6 * MIB) for _ in range(3))
    other = allocator.malloc(20 * MIB)
    for block in (first, third, second):
        allocator.free(block)
    assert [size for size, _, _ in allocator.large.free] == [20 * MIB]
    allocator.free(other)
    assert [size for size, _, _ in allocator.large.free] == [20 * MIB, 20 * MIB]


def test_a_full_device_is_flushed_and_asked_again():
    allocator = CachingAllocator(100 * MIB)
    allocator.free(allocator.malloc(60 * MIB))
    allocator.malloc(80 * MIB)
    assert (allocator.num_alloc_retries, *mib(allocator)) == (1, 80, 80)


def test_a_flush_keeps_segments_that_are_in_use():
    allocator = CachingAllocator(100 * MIB)
    kept, freed = allocator.malloc(30 * MIB), allocator.malloc(30 * MIB)
    allocator.free(freed)
    part = allocator.malloc(10 * MIB)
    assert part.address == freed.address
    with pytest.raises(OutOfDeviceMemory):
        allocator.malloc(50 * MIB)
    assert mib(allocator) == (40, 60)
    allocator.free(kept)
    allocator.malloc(60 * MIB)
    assert allocator.num_alloc_retries == 2


def test_peaks_begin_anew():
    allocator = CachingAllocator()
    allocator.free(allocator.malloc(64 * MIB))
    assert allocator.peak_allocated_bytes == 64 * MIB
    allocator.reset_peaks()
    assert (allocator.peak_allocated_bytes, allocator.peak_reserved_bytes) == (0, 64 * MIB)


def flush(allocator: CachingAllocator) -> None:
    """Empty the cache: what is given back are whole pages of the device, and nothing that is in use."""
    before = allocator.allocated_bytes, allocator.reserved_bytes
    allocator.empty_cache()
    given_back = before[1] - allocator.reserved_bytes
    assert allocator.allocated_bytes == before[0]
    assert given_back >= 0 and given_back % SMALL_SEGMENT == 0


@given(st.lists(sizes, max_size=60), st.randoms(use_true_random=False))
def test_the_laws(requests, rng):
    allocator, blocks, asked = CachingAllocator(), [], {}
    for size in requests:
        block = allocator.malloc(size)
        blocks.append(block)
        asked[block] = size
        if rng.random() < 0.5:
            allocator.free(blocks.pop(rng.randrange(len(blocks))))
        if rng.random() < 0.1:
            flush(allocator)
        # What is in use is what was given out, rounded, and at most the unsplit rest more.
        assert allocator.allocated_bytes == sum(block.size for block in blocks)
        for block in blocks:
            assert 0 <= block.size - asked[block] < MIN_BLOCK + MAX_UNSPLIT_BYTES
        assert allocator.allocated_bytes <= allocator.reserved_bytes
        assert allocator.reserved_bytes <= allocator.peak_reserved_bytes
        assert allocator.allocated_bytes <= allocator.peak_allocated_bytes
        # Blocks lie side by side, used or free, and make up all that is reserved.
        everything = blocks_by_address(allocator, blocks)
        assert sum(block.size for block in everything) == allocator.reserved_bytes
        for left, right in itertools.pairwise(everything):
            assert left.address + left.size <= right.address
            assert not (left.is_free and right.is_free and left.next is right), "free neighbours were not merged"
    for block in blocks:
        allocator.free(block)
    allocator.empty_cache()
    assert allocator.allocated_bytes == 0
    assert allocator.reserved_bytes == 0


@given(st.lists(sizes, min_size=1, max_size=60), st.integers(64, 800), st.randoms(use_true_random=False))
def test_a_capacity_is_never_exceeded(requests, capacity, rng):
    allocator, blocks = CachingAllocator(capacity * MIB), []
    for size in requests:
        try:
            blocks.append(allocator.malloc(size))
            assert blocks[-1].size >= size
        except OutOfDeviceMemory:
            while blocks:
                allocator.free(blocks.pop())
        if blocks and rng.random() < 0.4:
            allocator.free(blocks.pop(rng.randrange(len(blocks))))
        assert allocator.peak_reserved_bytes <= capacity * MIB


def test_room_without_end_and_just_enough_give_the_same_run():
    rng = random.Random(1)
    requests = [rng.randrange(1, 40 * MIB) for _ in range(400)]

    def run(allocator: CachingAllocator) -> tuple[int, int, int]:
        order, blocks = random.Random(2), []
        for size in requests:
            blocks.append(allocator.malloc(size))
            if len(blocks) > 20:
                allocator.free(blocks.pop(order.randrange(20)))
        return allocator.peak_allocated_bytes, allocator.peak_reserved_bytes, allocator.num_alloc_retries

    without_end = run(CachingAllocator())
    assert run(CachingAllocator(without_end[1])) == without_end
    assert run(CachingAllocator(without_end[1] - ROUND_LARGE))[2] > 0
