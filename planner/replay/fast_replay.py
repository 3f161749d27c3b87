"""Replay as `planner.replay.dry_run` does, written for speed.

The result is the two peaks, or None where memory ran out. A map asks for hundreds of replays. Here numpy prepares the
events beforehand, blocks are numbers in lists, and the weights, whose blocks are the same at every size, are loaded
once. A workspace that finds room is not allocated: taken and given back, it would leave everything as it was.
`planner.replay.allocator` explains the rules; tests hold both to the same answers.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from typing import NamedTuple

import numpy as np

from planner.programs.events import Events
from planner.programs.library import Op
from planner.replay.allocator import MIN_BLOCK, SMALL_SIZE, CachingAllocator
from planner.replay.dry_run import ATTENTION, BIRTH, CONVOLUTION, DEATH
from planner.replay.kernels import KernelPolicy

# The kinds of events that move memory.
_BIRTH, _DEATH, _WORKSPACE, _HANDLE, _FLUSH = range(5)

_NONE = -1


class Loaded(NamedTuple):
    """Hold the state of the allocator once the weights are loaded.

    `events` and `births` count those so far. `free` has the (size, address) of each free block, of the small pool and
    of the large one.
    """

    events: int
    births: int
    reserved_bytes: int
    next_address: int
    free: tuple[tuple[tuple[int, int], ...], ...]


def loaded(events: Events) -> Loaded:
    """Load this history's weights; the state is that of every history with the same weights."""
    until = int(np.argmax(events.kinds == Op.LOADED)) + 1
    sizes = events.values[:until][events.kinds[:until] == Op.BIRTH].tolist()
    allocator = CachingAllocator()
    for size in sizes:
        allocator.malloc(size)
    pools = (allocator.small, allocator.large)
    free = tuple(tuple((size, address) for size, address, _ in pool.free) for pool in pools)
    return Loaded(until, len(sizes), allocator.reserved_bytes, allocator._next_address, free)


class Script(NamedTuple):
    """Hold a history from `Loaded` on, prepared for `peaks`.

    `values` has bytes or the number of a storage, `shapes` the number of a convolution's shape.
    """

    start: Loaded
    kinds: list[int]
    values: list[int]
    shapes: list[int]


def script(events: Events, policy: KernelPolicy, start: Loaded, *, has_end: bool = False) -> Script:
    """Prepare this history with kernels of this policy; `has_end` also for a capacity."""
    kinds, values = events.kinds[start.events :], events.values[start.events :].copy()
    shapes = np.full(len(kinds), _NONE)
    plain = np.full(len(kinds), _NONE)
    for op, kind in ((BIRTH, _BIRTH), (DEATH, _DEATH), (int(Op.EMPTY_CACHE), _FLUSH)):
        plain[kinds == op] = kind
    for op, sizes in (
        (CONVOLUTION, policy.convolution_bytes(events.convolutions)),
        (ATTENTION, policy.attention_bytes(events.attentions)),
    ):
        at = np.flatnonzero(kinds == op)
        rows = values[at]
        if op == CONVOLUTION and has_end:
            shapes[at] = _numbered(events.convolutions)[rows]
        values[at] = sizes[rows]
        plain[at[values[at] > 0]] = _WORKSPACE
    products = np.flatnonzero(kinds == Op.PRODUCT)[:1]
    plain[products], values[products] = _HANDLE, policy.cublas_bytes
    sized = np.isin(plain, (_BIRTH, _WORKSPACE, _HANDLE))
    values[sized] = np.maximum(-(-values[sized] // MIN_BLOCK) * MIN_BLOCK, MIN_BLOCK)
    kept = plain != _NONE
    return Script(start, plain[kept].tolist(), values[kept].tolist(), shapes[kept].tolist())


def _numbered(rows: np.ndarray) -> np.ndarray:
    """Number the rows, equal rows alike."""
    numbers: dict[tuple[int, ...], int] = {}
    return np.array([numbers.setdefault(tuple(row), len(numbers)) for row in rows.tolist()], dtype=np.int64)


class Peaks(NamedTuple):
    """Hold the peaks of a replay, in bytes."""

    reserved_bytes: int
    allocated_bytes: int


def peaks(played: Script, capacity_bytes: int | None = None, *, flushes_first: bool = False) -> Peaks | None:
    """Replay the script within `capacity_bytes` and give its peaks, None if out of memory.

    `flushes_first` flushes the cache before it asks for any segment, and so reserves about as little as a run can.
    """
    start = played.start
    room = 1 << 62 if capacity_bytes is None else capacity_bytes
    reserved = most = start.reserved_bytes
    allocated = most_allocated = start.reserved_bytes - sum(size for pieces in start.free for size, _ in pieces)
    if reserved > room:
        return None
    next_address = start.next_address
    # Block 0 stands for everything that is never freed.
    size, address, before, after, pool_of, is_free = [0], [0], [_NONE], [_NONE], [0], [False]
    pools: tuple[list[tuple[int, int, int]], ...] = ([], [])
    for pool, pieces in enumerate(start.free):
        for piece_size, piece_address in pieces:
            pools[pool].append((piece_size, piece_address, len(size)))
            for column, value in (
                (size, piece_size),
                (address, piece_address),
                (before, 0),
                (after, _NONE),
                (pool_of, pool),
                (is_free, True),
            ):
                column.append(value)  # ty: ignore[invalid-argument-type]
    blocks = [_NONE] * start.births
    fallen_back: set[int] = set()

    def flush() -> int:
        """Give back every segment that is free as a whole, and return the bytes given back."""
        given = 0
        for free in pools:
            whole = [entry for entry in free if before[entry[2]] == _NONE and after[entry[2]] == _NONE]
            for entry in whole:
                given += entry[0]
                free.remove(entry)
        return given

    for kind, value, shape in zip(played.kinds, played.values, played.shapes, strict=True):
        if kind == _DEATH:
            block = blocks[value]
            whole, other = size[block], before[block]
            allocated -= whole
            free = pools[pool_of[block]]
            if other > 0 and is_free[other]:
                del free[bisect_left(free, (size[other], address[other]))]
                whole += size[other]
                address[block] = address[other]
                is_free[other] = False
                other = before[block] = before[other]
                if other >= 0:
                    after[other] = block
            other = after[block]
            if other >= 0 and is_free[other]:
                del free[bisect_left(free, (size[other], address[other]))]
                whole += size[other]
                is_free[other] = False
                other = after[block] = after[other]
                if other >= 0:
                    before[other] = block
            size[block] = whole
            is_free[block] = True
            insort(free, (whole, address[block], block))
            continue
        if kind == _FLUSH:
            reserved -= flush()
            continue
        pool = 0 if value <= SMALL_SIZE else 1
        free = pools[pool]
        if kind == _WORKSPACE and shape in fallen_back:
            continue
        place = bisect_left(free, (value,))
        if kind == _WORKSPACE and place < len(free):
            have = free[place][0]
            rest = have - value
            taken = value if rest > SMALL_SIZE or (rest and not pool) else have
            if allocated + taken > most_allocated:
                most_allocated = allocated + taken
            continue
        if place < len(free):
            have, _, block = free.pop(place)
            is_free[block] = False
        else:
            have = CachingAllocator.segment_size(value)
            if flushes_first:
                reserved -= flush()
            if reserved + have > room:
                reserved -= flush()
                if reserved + have > room:
                    if shape == _NONE:
                        return None
                    fallen_back.add(shape)
                    continue
            reserved += have
            if reserved > most:
                most = reserved
            block = len(size)
            size.append(have)
            address.append(next_address)
            before.append(_NONE)
            after.append(_NONE)
            pool_of.append(pool)
            is_free.append(False)
            next_address += have + MIN_BLOCK
            if kind == _WORKSPACE:
                is_free[block] = True
                insort(free, (have, address[block], block))
                rest = have - value
                taken = value if rest > SMALL_SIZE or (rest and not pool) else have
                if allocated + taken > most_allocated:
                    most_allocated = allocated + taken
                continue
        rest = have - value
        if rest > SMALL_SIZE or (rest and not pool):
            piece, other = len(size), after[block]
            place_of = address[block] + value
            size.append(rest)
            address.append(place_of)
            before.append(block)
            after.append(other)
            pool_of.append(pool)
            is_free.append(True)
            if other >= 0:
                before[other] = piece
            after[block] = piece
            size[block] = value
            insort(free, (rest, place_of, piece))
            have = value
        allocated += have
        if allocated > most_allocated:
            most_allocated = allocated
        if kind == _BIRTH:
            blocks.append(block)
    return Peaks(most, most_allocated)
