import contextlib
import itertools
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from planner.replay.allocator import (
    LARGE_PAGE,
    LARGE_SEGMENT,
    MAX_UNSPLIT_BYTES,
    MIN_BLOCK,
    MIN_LARGE_ALLOC,
    ROUND_LARGE,
    SMALL_PAGE,
    SMALL_SEGMENT,
    SMALL_SIZE,
    CachingAllocator,
    OutOfDeviceMemory,
)
from planner.units import MIB

# A busy machine takes longer than hypothesis allows by default.
unhurried = settings(deadline=None)
both = pytest.mark.parametrize("expandable", [False, True])
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
    before, promised = (allocator.allocated_bytes, allocator.reserved_bytes), allocator.releasable_bytes()
    allocator.empty_cache()
    given_back = before[1] - allocator.reserved_bytes
    assert given_back == promised and allocator.releasable_bytes() == 0
    assert allocator.allocated_bytes == before[0]
    assert given_back >= 0 and given_back % SMALL_SEGMENT == 0


def check_links(allocator: CachingAllocator, blocks: list) -> None:
    """Walk every expandable segment by its links, and hold what lies there to what the pools list."""
    for pool in (allocator.small, allocator.large):
        free = {block.address: block for _, _, block in pool.free}
        unmapped = {block.address: block for _, block in pool.unmapped}
        starts = [block for block in (*blocks, *free.values(), *unmapped.values()) if block.previous is None]
        walked = []
        for block in (block for block in starts if block.pool is pool):
            segment = [block]
            while segment[-1].next is not None:
                segment.append(segment[-1].next)
            for left, right in itertools.pairwise(segment):
                assert right.previous is left and left.address + left.size == right.address
                assert not (left.is_free and right.is_free) and (left.is_mapped or right.is_mapped), "not merged"
            walked += segment
        assert {block.address for block in walked if block.is_free} == set(free)
        assert {block.address for block in walked if not block.is_mapped} == set(unmapped)
        used = [block for block in walked if block.is_mapped and not block.is_free]
        assert sorted(block.address for block in used) == sorted(b.address for b in blocks if b.pool is pool)
        for block in unmapped.values():
            assert block.address % pool.page_bytes == block.size % pool.page_bytes == 0
        assert all(size == block.size and address == block.address for size, address, block in pool.free)
        assert pool.free == sorted(pool.free, key=lambda entry: entry[:2])


@both
@unhurried
@given(requests=st.lists(sizes, max_size=60), rng=st.randoms(use_true_random=False))
def test_the_laws(expandable, requests, rng):
    allocator, blocks, asked = CachingAllocator(expandable=expandable), [], {}
    unsplit = 0 if expandable else MAX_UNSPLIT_BYTES
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
            assert 0 <= block.size - asked[block] < MIN_BLOCK + unsplit
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


@both
@unhurried
@given(
    requests=st.lists(sizes, min_size=1, max_size=60),
    capacity=st.integers(64, 800),
    rng=st.randoms(use_true_random=False),
)
def test_a_capacity_is_never_exceeded(expandable, requests, capacity, rng):
    allocator, blocks = CachingAllocator(capacity * MIB, expandable), []
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
        assert allocator.allocated_bytes == sum(block.size for block in blocks)
        if expandable:
            check_links(allocator, blocks)


@both
def test_room_without_end_and_just_enough_give_the_same_run(expandable):
    rng = random.Random(1)
    requests = [rng.randrange(1, 40 * MIB) for _ in range(400)]

    def run(allocator: CachingAllocator) -> tuple[int, int, int]:
        order, blocks = random.Random(2), []
        # Used pages have free ends that no flush gives back, so expandable segments may run out of memory.
        with contextlib.suppress(OutOfDeviceMemory):
            for size in requests:
                blocks.append(allocator.malloc(size))
                if len(blocks) > 20:
                    allocator.free(blocks.pop(order.randrange(20)))
        return allocator.peak_allocated_bytes, allocator.peak_reserved_bytes, allocator.num_alloc_retries

    without_end = run(CachingAllocator(None, expandable))
    assert without_end[2] == 0
    assert run(CachingAllocator(without_end[1], expandable)) == without_end
    assert run(CachingAllocator(without_end[1] - ROUND_LARGE, expandable))[2] > 0


def expanding(capacity_mib: int | None = None) -> CachingAllocator:
    return CachingAllocator(None if capacity_mib is None else capacity_mib * MIB, expandable=True)


def pages(size: int, page: int) -> int:
    return -(-size // page) * page


@pytest.mark.parametrize(
    ("requests", "allocated", "reserved"),
    [
        ([1], MIN_BLOCK, SMALL_PAGE),
        ([SMALL_SIZE], SMALL_SIZE, SMALL_PAGE),
        ([SMALL_SIZE + 1], SMALL_SIZE + MIN_BLOCK, LARGE_PAGE),
        ([11 * MIB], 11 * MIB, LARGE_PAGE),
        ([LARGE_PAGE + 1], LARGE_PAGE + MIN_BLOCK, 2 * LARGE_PAGE),
        # The second begins behind the first, where the default would have reserved 4 + 50 MiB more.
        ([3 * MIB, 50 * MIB], 53 * MIB, 3 * LARGE_PAGE),
        ([SMALL_SIZE] * 5, 5 * SMALL_SIZE, 3 * SMALL_PAGE),
        # Each pool has pages of its own.
        ([MIB, 2 * MIB], 3 * MIB, SMALL_PAGE + LARGE_PAGE),
    ],
)
def test_expandable_segments_map_whole_pages(requests, allocated, reserved):
    allocator = expanding()
    for size in requests:
        allocator.malloc(size)
    assert (allocator.allocated_bytes, allocator.reserved_bytes) == (allocated, reserved)


def test_an_expandable_segment_grows_from_the_free_block_at_its_end():
    allocator = expanding()
    first, _ = allocator.malloc(15 * MIB), allocator.malloc(15 * MIB)
    allocator.free(first)
    # The hole of 15 MiB is too small; the free 10 MiB at the end are, with one page more, enough.
    assert allocator.malloc(16 * MIB).address == 30 * MIB
    assert mib(allocator) == (31, 60)


def test_the_best_fit_counts_the_room_to_grow():
    allocator = expanding()
    hole = allocator.malloc(12 * MIB)
    allocator.malloc(3 * MIB)
    allocator.free(hole)
    # The 5 MiB at the end fit better, but they can grow.
    assert allocator.malloc(4 * MIB).address == 0
    assert mib(allocator) == (7, 20)


def test_a_flush_unmaps_whole_pages_and_leaves_the_ends():
    allocator = expanding()
    freed, _ = allocator.malloc(30 * MIB), allocator.malloc(10 * MIB)
    allocator.free(freed)
    flush(allocator)
    assert mib(allocator) == (10, 20)
    # The free 10 MiB behind the unmapped page serve the next request together with it.
    assert allocator.malloc(25 * MIB).address == 0
    assert mib(allocator) == (35, 40)


def unmapped_free_unmapped(capacity_mib: int | None) -> CachingAllocator:
    """Make a segment of one unmapped page, one free page, and unmapped ones."""
    allocator = expanding(capacity_mib)
    first, second = allocator.malloc(30 * MIB), allocator.malloc(5 * MIB)
    allocator.free(first)
    flush(allocator)
    allocator.free(second)
    assert mib(allocator) == (0, 20)
    return allocator


def test_a_request_maps_pages_on_both_sides_of_a_free_block():
    allocator = unmapped_free_unmapped(None)
    assert allocator.malloc(45 * MIB).address == 0
    assert (allocator.num_alloc_retries, *mib(allocator)) == (0, 45, 60)


def test_pages_mapped_before_the_device_was_full_are_flushed_before_it_is_out_of_memory():
    allocator = unmapped_free_unmapped(50)
    with pytest.raises(OutOfDeviceMemory):
        allocator.malloc(45 * MIB)
    assert (allocator.num_alloc_retries, *mib(allocator)) == (1, 0, 0)
    # The page on the left was mapped before the one on the right found no room.
    assert allocator.peak_reserved_bytes == 40 * MIB
    allocator.malloc(40 * MIB)
    assert mib(allocator) == (40, 40)


def test_a_full_device_unmaps_pages_and_maps_them_elsewhere():
    allocator = expanding(40)
    freed, kept = allocator.malloc(20 * MIB), allocator.malloc(15 * MIB)
    allocator.free(freed)
    assert allocator.malloc(25 * MIB).address == kept.address + kept.size
    assert (allocator.num_alloc_retries, *mib(allocator)) == (1, 40, 40)


def test_free_ends_of_used_pages_are_no_help_to_a_full_device():
    allocator = expanding(40)
    freed, _ = allocator.malloc(15 * MIB), allocator.malloc(15 * MIB)
    allocator.free(freed)
    with pytest.raises(OutOfDeviceMemory):
        allocator.malloc(25 * MIB)
    assert (allocator.num_alloc_retries, *mib(allocator)) == (1, 15, 40)


def test_a_second_segment_is_made_where_the_addresses_of_the_first_are_cut_in_two():
    allocator = expanding(100)
    freed, kept = allocator.malloc(40 * MIB), allocator.malloc(20 * MIB)
    allocator.free(freed)
    # Of 120 MiB of addresses 40 lie before the block that is kept, and 60 behind it.
    assert allocator.malloc(70 * MIB).address > kept.address + 80 * MIB
    assert (allocator.num_alloc_retries, *mib(allocator)) == (1, 90, 100)


@unhurried
@given(st.lists(st.one_of(sizes, st.just(None)), max_size=60))
def test_the_last_in_first_out_leaves_no_holes(steps):
    """Free only the newest block: all that is free then lies at the end, and each pool reserves its peak in pages."""
    allocator, blocks, peaks = expanding(), [], [0, 0]
    for size in steps:
        if size is not None:
            blocks.append(allocator.malloc(size))
        elif blocks:
            allocator.free(blocks.pop())
        for index, pool in enumerate((allocator.small, allocator.large)):
            peaks[index] = max(peaks[index], sum(block.size for block in blocks if block.pool is pool))
    assert allocator.reserved_bytes == pages(peaks[0], SMALL_PAGE) + pages(peaks[1], LARGE_PAGE)


@unhurried
@given(st.lists(sizes, max_size=60), st.randoms(use_true_random=False))
def test_expandable_segments_keep_their_links(requests, rng):
    allocator, blocks = expanding(), []
    for size in requests:
        blocks.append(allocator.malloc(size))
        while blocks and rng.random() < 0.45:
            allocator.free(blocks.pop(rng.randrange(len(blocks))))
        if rng.random() < 0.2:
            flush(allocator)
        check_links(allocator, blocks)
    while blocks:
        allocator.free(blocks.pop())
    flush(allocator)
    assert allocator.reserved_bytes == 0
    # The addresses of empty segments were given back too; only a segment that never had memory keeps them.
    assert all(block.previous is block.next is None for _, block in allocator.large.unmapped)
