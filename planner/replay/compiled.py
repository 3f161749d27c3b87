"""Replay a history by machine code, compiled by numba: the rules of `planner.replay.allocator`, over arrays.

A block is a number: its row in the columns of `Blocks`. Numbers of blocks that have merged into others are given out
again. The free blocks of a pool are two arrays, sorted by size and then by address: of sizes and of block numbers.
`planner.replay.fast_replay` imports this module only where enough work awaits it.
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from numba import config, njit
from numba.core.caching import NullCache

# An installed package is often read-only, and nobody looks for machine code beside its source: the folder that
# NUMBA_CACHE_DIR names comes first, then the user's own.
if not getattr(config, "CACHE_LOCATOR_CLASSES", ""):
    config.CACHE_LOCATOR_CLASSES = "UserProvidedCacheLocator,UserWideCacheLocator"  # ty: ignore[missing-attribute]

# These repeat `planner.programs.library.Op` and `planner.replay.allocator`, which a test compares. Machine code on disk
# is made anew where this file has changed, not where another one has, so what is compiled in must stand here.
BIRTH, DEATH, CONVOLUTION, ATTENTION, EMPTY_CACHE, PRODUCT = 0, 1, 2, 3, 6, 9
MIN_BLOCK = 512
SMALL_SIZE = MAX_UNSPLIT_BYTES = 1 << 20
SMALL_SEGMENT = ROUND_LARGE = 2 << 20
MIN_LARGE_ALLOC = 10 << 20
LARGE_SEGMENT = 20 << 20

SMALL, LARGE = 0, 1
NONE = -1
# The block before the first free one of a loaded segment: weights, which are never freed.
NEVER_FREED = 0

# The highest capacity there is: memory without a limit.
UNLIMITED = 1 << 62

# The places in the ledger: bytes reserved now and at most, the capacity, the least that was refused to be reserved in
# all, and the address of the next segment.
RESERVED, MOST_RESERVED, CAPACITY, REFUSED, NEXT_ADDRESS = range(5)


class Blocks(NamedTuple):
    """Hold the table of blocks, a column each; a row is one block.

    `previous` and `next` are the neighbours of a block in its segment, or `NONE`. `spare` has the numbers of blocks
    that are no more, and `count` how many numbers were ever given out and how many of them are spare.
    """

    size: np.ndarray
    address: np.ndarray
    previous: np.ndarray
    next: np.ndarray
    pool: np.ndarray
    is_free: np.ndarray
    spare: np.ndarray
    count: np.ndarray


class Free(NamedTuple):
    """Hold the free blocks: sizes and numbers, a row for each pool, and how many there are in each."""

    sizes: np.ndarray
    blocks: np.ndarray
    count: np.ndarray


def _jit(function: Callable) -> Callable:
    return njit(nogil=True, inline="always")(function)


def _has_cache_folder() -> bool:
    """Tell whether numba finds a folder for machine code that can be written."""
    try:
        njit(cache=True)(_has_cache_folder)
    except RuntimeError:
        return False
    return True


_HAS_FOLDER = _has_cache_folder()


@_jit
def _new_blocks(rows):
    """Make an empty table; a new block sets its whole row."""
    return Blocks(
        np.empty(rows, np.int64),
        np.empty(rows, np.int64),
        np.empty(rows, np.int32),
        np.empty(rows, np.int32),
        np.empty(rows, np.int8),
        np.empty(rows, np.bool_),
        np.empty(rows, np.int32),
        np.zeros(2, np.int64),
    )


@_jit
def _new_free(rows):
    return Free(np.empty((2, rows), np.int64), np.empty((2, rows), np.int32), np.zeros(2, np.int64))


@_jit
def _number(blocks):
    """Give the number of a new block: a spare one, or the next."""
    if blocks.count[1]:
        blocks.count[1] -= 1
        return blocks.spare[blocks.count[1]]
    blocks.count[0] += 1
    return np.int32(blocks.count[0])


@_jit
def _recycle(blocks, block):
    """Keep the number of a block that is no more."""
    blocks.spare[blocks.count[1]] = block
    blocks.count[1] += 1


@_jit
def _place(free, pool, size):
    """Find the first free block of at least this size."""
    low, high = 0, free.count[pool]
    while low < high:
        middle = (low + high) >> 1
        if free.sizes[pool, middle] < size:
            low = middle + 1
        else:
            high = middle
    return low


@_jit
def _place_of(free, blocks, pool, size, address):
    """Find where a free block of this size and address is, or belongs."""
    place = _place(free, pool, size)
    while (
        place < free.count[pool]
        and free.sizes[pool, place] == size
        and blocks.address[free.blocks[pool, place]] < address
    ):
        place += 1
    return place


@_jit
def _add(free, blocks, block):
    """Add a block that has become free."""
    pool, size = blocks.pool[block], blocks.size[block]
    place = _place_of(free, blocks, pool, size, blocks.address[block])
    for index in range(free.count[pool], place, -1):
        free.sizes[pool, index] = free.sizes[pool, index - 1]
        free.blocks[pool, index] = free.blocks[pool, index - 1]
    free.sizes[pool, place], free.blocks[pool, place] = size, block
    free.count[pool] += 1
    blocks.is_free[block] = True


@_jit
def _take(free, blocks, pool, place):
    """Remove the free block at this place, and return it."""
    block = free.blocks[pool, place]
    free.count[pool] -= 1
    for index in range(place, free.count[pool]):
        free.sizes[pool, index] = free.sizes[pool, index + 1]
        free.blocks[pool, index] = free.blocks[pool, index + 1]
    blocks.is_free[block] = False
    return block


@_jit
def _absorb(free, blocks, block, other):
    """Merge a free neighbour into the block; its number is free for a new block."""
    pool = blocks.pool[block]
    _take(free, blocks, pool, _place_of(free, blocks, pool, blocks.size[other], blocks.address[other]))
    blocks.size[block] += blocks.size[other]
    _recycle(blocks, other)


@_jit
def _free(free, blocks, block):
    """Free a block, which merges with its free neighbours."""
    other = blocks.previous[block]
    if other > NEVER_FREED and blocks.is_free[other]:
        blocks.address[block], blocks.previous[block] = blocks.address[other], blocks.previous[other]
        if blocks.previous[block] > NEVER_FREED:
            blocks.next[blocks.previous[block]] = block
        _absorb(free, blocks, block, other)
    other = blocks.next[block]
    if other != NONE and blocks.is_free[other]:
        blocks.next[block] = blocks.next[other]
        if blocks.next[block] != NONE:
            blocks.previous[blocks.next[block]] = block
        _absorb(free, blocks, block, other)
    _add(free, blocks, block)


@_jit
def _flush(free, blocks):
    """Give back every segment that is free as a whole, and return the bytes given back."""
    given = 0
    for pool in range(2):
        kept = 0
        for index in range(free.count[pool]):
            block = free.blocks[pool, index]
            if blocks.previous[block] == NONE and blocks.next[block] == NONE:
                given += free.sizes[pool, index]
                blocks.is_free[block] = False
                _recycle(blocks, block)
            else:
                free.sizes[pool, kept], free.blocks[pool, kept] = free.sizes[pool, index], block
                kept += 1
        free.count[pool] = kept
    return given


@_jit
def _segment_size(size):
    """Compute the bytes to reserve when a request of this size finds no free block."""
    if size <= SMALL_SIZE:
        return SMALL_SEGMENT
    if size < MIN_LARGE_ALLOC:
        return LARGE_SEGMENT
    return (size + ROUND_LARGE - 1) // ROUND_LARGE * ROUND_LARGE


@_jit
def _reserve(ledger, free, blocks, size):
    """Reserve memory, after a flush if the device is full, and tell whether there was room."""
    for is_flushed in range(2):
        wanted = ledger[RESERVED] + size
        if wanted <= ledger[CAPACITY]:
            ledger[RESERVED] = wanted
            ledger[MOST_RESERVED] = max(ledger[MOST_RESERVED], wanted)
            return True
        ledger[REFUSED] = min(ledger[REFUSED], wanted)
        if not is_flushed:
            ledger[RESERVED] -= _flush(free, blocks)
    return False


@_jit
def _grow(ledger, free, blocks, pool, size):
    """Reserve a new segment for a request of this size, and give it as one block.

    The block is `NONE` where there is no room.
    """
    segment = _segment_size(size)
    if not _reserve(ledger, free, blocks, segment):
        return np.int32(NONE)
    block = _number(blocks)
    blocks.size[block], blocks.address[block], blocks.pool[block] = segment, ledger[NEXT_ADDRESS], pool
    blocks.previous[block] = blocks.next[block] = NONE
    blocks.is_free[block] = False
    # The gap makes sure that blocks of two segments are not taken for neighbours.
    ledger[NEXT_ADDRESS] += segment + MIN_BLOCK
    return block


@_jit
def _cut(blocks, block, size):
    """Cut the block to this size, and give the rest as a block of its own."""
    rest, after = _number(blocks), blocks.next[block]
    blocks.size[rest], blocks.address[rest] = blocks.size[block] - size, blocks.address[block] + size
    blocks.pool[rest], blocks.previous[rest], blocks.next[rest] = blocks.pool[block], block, after
    if after != NONE:
        blocks.previous[after] = rest
    blocks.next[block], blocks.size[block] = rest, size
    return rest


@_jit
def _replace(free, blocks, pool, place, rest):
    """Put the rest of the free block at this place where its size belongs, which is no later."""
    blocks.is_free[free.blocks[pool, place]] = False
    size, address = blocks.size[rest], blocks.address[rest]
    while place > 0 and (
        free.sizes[pool, place - 1] > size
        or (free.sizes[pool, place - 1] == size and blocks.address[free.blocks[pool, place - 1]] > address)
    ):
        free.sizes[pool, place], free.blocks[pool, place] = free.sizes[pool, place - 1], free.blocks[pool, place - 1]
        place -= 1
    free.sizes[pool, place], free.blocks[pool, place] = size, rest
    blocks.is_free[rest] = True


@_jit
def _taken(pool, have, size):
    """Compute the bytes that a request takes of a free block: all of it where the rest is not split off."""
    rest = have - size
    return size if rest > MAX_UNSPLIT_BYTES or (rest > 0 and pool == SMALL) else have


@_jit
def _has_fallen_back(convolutions, row, fallen_back, count):
    """Tell whether a convolution of this shape has fallen back before."""
    for index in range(count):
        other, is_equal = fallen_back[index], True
        for column in range(convolutions.shape[1]):
            is_equal = is_equal and convolutions[row, column] == convolutions[other, column]
        if is_equal:
            return True
    return False


@njit(nogil=True, cache=_HAS_FOLDER)
def replay(
    kinds,
    values,
    convolution_bytes,
    attention_bytes,
    convolutions,
    cublas_bytes,
    births,
    free_sizes,
    free_addresses,
    free_pools,
    reserved,
    next_address,
    capacity,
    flushes_first,
):
    """Replay the events of a `planner.replay.fast_replay.Script` within this capacity.

    The result is whether the run ended well, the reserved and the allocated peak, and the least that was refused: at
    every capacity from the reserved peak until below that, the replay is the same.
    """
    # An event makes two blocks at most: a segment, and the rest of it.
    rows = 1 + len(free_sizes) + 2 * len(kinds)
    blocks, free = _new_blocks(rows), _new_free(rows)
    ledger = np.zeros(5, np.int64)
    ledger[RESERVED] = ledger[MOST_RESERVED] = reserved
    ledger[CAPACITY], ledger[REFUSED], ledger[NEXT_ADDRESS] = capacity, UNLIMITED, next_address
    allocated = reserved
    for index in range(len(free_sizes)):
        block = _number(blocks)
        blocks.size[block], blocks.address[block] = free_sizes[index], free_addresses[index]
        blocks.previous[block], blocks.next[block], blocks.pool[block] = NEVER_FREED, NONE, free_pools[index]
        _add(free, blocks, block)
        allocated -= free_sizes[index]
    most_allocated = allocated
    if reserved > capacity:
        return False, reserved, most_allocated, reserved
    block_of = np.full(births + len(kinds), NONE, np.int32)
    fallen_back, fallen = np.zeros(len(convolutions), np.int64), 0
    has_handle = False
    for event in range(len(kinds)):
        kind, value = kinds[event], values[event]
        if kind == DEATH:
            block = block_of[value]
            allocated -= blocks.size[block]
            _free(free, blocks, block)
            continue
        size = np.int64(0)
        if kind == BIRTH:
            size = max(value, MIN_BLOCK)
        elif kind == CONVOLUTION:
            size = convolution_bytes[value]
            if size and fallen and _has_fallen_back(convolutions, value, fallen_back, fallen):
                size = 0
        elif kind == ATTENTION:
            size = attention_bytes[value]
        elif kind == PRODUCT and not has_handle:
            size, has_handle = cublas_bytes, True
        elif kind == EMPTY_CACHE:
            ledger[RESERVED] -= _flush(free, blocks)
        if size == 0:
            continue
        size = (size + MIN_BLOCK - 1) // MIN_BLOCK * MIN_BLOCK
        pool = SMALL if size <= SMALL_SIZE else LARGE
        place = _place(free, pool, size)
        is_workspace = kind in (CONVOLUTION, ATTENTION)
        if place < free.count[pool]:
            if is_workspace:
                # Taken and given back, it would leave every block as it was.
                most_allocated = max(most_allocated, allocated + _taken(pool, free.sizes[pool, place], size))
                continue
            block = free.blocks[pool, place]
            if _taken(pool, blocks.size[block], size) < blocks.size[block]:
                _replace(free, blocks, pool, place, _cut(blocks, block, size))
            else:
                _take(free, blocks, pool, place)
        else:
            if flushes_first:
                ledger[RESERVED] -= _flush(free, blocks)
            block = _grow(ledger, free, blocks, pool, size)
            if block == NONE and kind == CONVOLUTION:
                fallen_back[fallen] = value
                fallen += 1
                continue
            if block == NONE:
                return False, ledger[MOST_RESERVED], most_allocated, ledger[REFUSED]
            if is_workspace:
                most_allocated = max(most_allocated, allocated + _taken(pool, blocks.size[block], size))
                _add(free, blocks, block)
                continue
            if _taken(pool, blocks.size[block], size) < blocks.size[block]:
                _add(free, blocks, _cut(blocks, block, size))
        allocated += blocks.size[block]
        most_allocated = max(most_allocated, allocated)
        if kind == BIRTH:
            block_of[births] = block
            births += 1
    return True, ledger[MOST_RESERVED], most_allocated, ledger[REFUSED]


def forget_cache() -> None:
    """Compile `replay` anew at its next call, and keep the code in memory alone."""
    replay._cache = NullCache()  # ty: ignore[missing-attribute]


def is_cached() -> bool:
    """Tell whether the code of `replay` is kept on disk."""
    return not isinstance(replay._cache, NullCache)  # ty: ignore[missing-attribute]
