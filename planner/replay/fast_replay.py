"""Replay as `planner.replay.dry_run` does, for the peaks alone: what a boundary or a map asks hundreds of times.

The weights, whose blocks are the same at every size, are loaded once. Two engines give the same answers. The readable
one is `planner.replay.allocator`, at some milliseconds a replay. The compiled one, `planner.replay.compiled`, is twenty
times faster, but takes two thirds of a second to load, and some seconds where its code is not on disk yet. So a process
begins with the readable one. It loads the other once it has replayed for about as long as that takes, or when `warm_up`
says that many replays are to come. Without numba, or where numba fails, the readable engine answers everything.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from planner.programs.events import Events
from planner.programs.library import Op
from planner.replay.allocator import Block, CachingAllocator, OutOfDeviceMemory, Pool
from planner.replay.dry_run import ATTENTION, BIRTH, CONVOLUTION, DEATH
from planner.replay.kernels import KernelPolicy

EMPTY_CACHE, PRODUCT = int(Op.EMPTY_CACHE), int(Op.PRODUCT)
UNLIMITED = 1 << 62

# So many readable replays take about as long as loading the compiled engine from disk.
PATIENCE = 150


class Loaded(NamedTuple):
    """Hold the state of the allocator once the weights are loaded.

    `events` and `births` count those so far. `sizes`, `addresses` and `pools` have a row for each free block, sorted;
    the pool is 0 for the small one and 1 for the large.
    """

    events: int
    births: int
    reserved_bytes: int
    next_address: int
    sizes: np.ndarray
    addresses: np.ndarray
    pools: np.ndarray


# The state before anything is loaded.
NOTHING_LOADED = Loaded(0, 0, 0, 0, *[np.zeros(0, np.int64)] * 3)


def loaded(events: Events) -> Loaded:
    """Load this history's weights; the state is that of every history with the same weights."""
    until = int(np.argmax(events.kinds == Op.LOADED)) + 1
    sizes = events.values[:until][events.kinds[:until] == Op.BIRTH].tolist()
    allocator = CachingAllocator()
    for size in sizes:
        allocator.malloc(size)
    pools = (allocator.small, allocator.large)
    free = [(size, address, number) for number, pool in enumerate(pools) for size, address, _ in pool.free]
    columns = np.array(free, dtype=np.int64).reshape(-1, 3).T
    return Loaded(
        until, len(sizes), allocator.reserved_bytes, allocator._next_address, *map(np.ascontiguousarray, columns)
    )


class Script(NamedTuple):
    """Hold a history from `Loaded` on, with the workspace of each of its kernels.

    `kinds` and `values` are those of `Events`. `convolution_bytes` and `attention_bytes` have a row for each kernel.
    """

    start: Loaded
    kinds: np.ndarray
    values: np.ndarray
    convolution_bytes: np.ndarray
    attention_bytes: np.ndarray
    convolutions: np.ndarray
    cublas_bytes: int
    is_expandable: bool = False


def script(events: Events, policy: KernelPolicy, start: Loaded, *, is_expandable: bool = False) -> Script:
    """Prepare this history with kernels of this policy, on either allocator."""
    return Script(
        start,
        np.ascontiguousarray(events.kinds[start.events :]),
        events.values[start.events :],
        policy.convolution_bytes(events.convolutions),
        policy.attention_bytes(events.attentions),
        events.convolutions,
        policy.cublas_bytes,
        is_expandable,
    )


class Peaks(NamedTuple):
    """Hold the peaks of a replay, in bytes."""

    reserved_bytes: int
    allocated_bytes: int


class Played(NamedTuple):
    """Hold the end of a replay.

    At every capacity from `reserved_bytes` until below `refused_bytes` the allocator decides alike, and the replay ends
    the same: `refused_bytes` is the least that the device was asked to reserve in all and had no room for.
    """

    is_ok: bool
    reserved_bytes: int
    allocated_bytes: int
    refused_bytes: int


def peaks(played: Script, capacity_bytes: int | None = None, *, flushes_first: bool = False) -> Peaks | None:
    """Replay the script within `capacity_bytes` and give its peaks, None if out of memory.

    `flushes_first` flushes the cache before it asks for any segment, and so reserves about as little as a run can.
    """
    found = play(played, capacity_bytes, flushes_first=flushes_first)
    return Peaks(found.reserved_bytes, found.allocated_bytes) if found.is_ok else None


def play(played: Script, capacity_bytes: int | None = None, *, flushes_first: bool = False) -> Played:
    """Replay the script within `capacity_bytes`, by the engine that is ready; see `peaks`."""
    return _engine.play(played, UNLIMITED if capacity_bytes is None else capacity_bytes, flushes_first)


def warm_up(*, in_background: bool = False) -> None:
    """Load the compiled engine, for a process in which many replays are to come.

    `in_background` returns at once; until the engine is there, the readable one goes on to answer.
    """
    if in_background:
        threading.Thread(target=_engine.load, name="load-compiled-replay", daemon=True).start()
    else:
        _engine.load()


def engine() -> str:
    """Say which engine answers once it is loaded, and why: for people."""
    _engine.load()
    return _engine.said


class WatchedAllocator(CachingAllocator):
    """Flush first where that is asked for, and remember the least that was refused."""

    def __init__(self, capacity_bytes: int, *, flushes_first: bool = False, expandable: bool = False):
        super().__init__(capacity_bytes, expandable)
        self.flushes_first = flushes_first
        self.refused_bytes = UNLIMITED

    def _reserve(self, size: int) -> None:
        if self.flushes_first:
            self.empty_cache()
        super()._reserve(size)

    def _extend(self, pool: Pool, size: int) -> Block:
        if self.flushes_first:
            self.empty_cache()
        return super()._extend(pool, size)

    def _has_room_for(self, size: int) -> bool:
        has_room = super()._has_room_for(size)
        if not has_room:
            self.refused_bytes = min(self.refused_bytes, self.reserved_bytes + size)
        return has_room


def _begun(played: Script, capacity_bytes: int, flushes_first: bool) -> WatchedAllocator:
    """Make an allocator in which the weights are loaded."""
    start = played.start
    allocator = WatchedAllocator(capacity_bytes, flushes_first=flushes_first, expandable=played.is_expandable)
    allocator.allocated_bytes = start.reserved_bytes - int(start.sizes.sum())
    allocator.reserved_bytes = start.reserved_bytes
    allocator.reset_peaks()
    allocator._next_address = start.next_address
    pools = (allocator.small, allocator.large)
    for size, address, number in zip(start.sizes.tolist(), start.addresses.tolist(), start.pools.tolist(), strict=True):
        block = Block(pools[number], address, size)
        # What lies before it in the segment is never freed.
        block.previous = Block(pools[number], address, 0)
        block.pool.add(block)
    return allocator


def play_readably(played: Script, capacity_bytes: int, flushes_first: bool) -> Played:
    """Replay the script by `CachingAllocator`, which is what the compiled engine is tested against."""
    start = played.start
    allocator = _begun(played, capacity_bytes, flushes_first)
    if start.reserved_bytes > capacity_bytes:
        return Played(False, start.reserved_bytes, allocator.allocated_bytes, start.reserved_bytes)
    malloc, free = allocator.malloc, allocator.free
    convolutions, attentions = played.convolution_bytes.tolist(), played.attention_bytes.tolist()
    # Weights are never freed, so their blocks do not matter.
    blocks = [Block(allocator.small, 0, 0)] * start.births
    fallen_back: set[bytes] = set()
    has_handle, is_ok = False, True
    try:
        for kind, value in zip(played.kinds.tolist(), played.values.tolist(), strict=True):
            if kind == BIRTH:
                blocks.append(malloc(value))
            elif kind == DEATH:
                free(blocks[value])
            elif kind == CONVOLUTION:
                if convolutions[value] and not (fallen_back and played.convolutions[value].tobytes() in fallen_back):
                    try:
                        free(malloc(convolutions[value]))
                    except OutOfDeviceMemory:
                        fallen_back.add(played.convolutions[value].tobytes())
            elif kind == ATTENTION:
                if attentions[value]:
                    free(malloc(attentions[value]))
            elif kind == PRODUCT and not has_handle:
                malloc(played.cublas_bytes)
                has_handle = True
            elif kind == EMPTY_CACHE:
                allocator.empty_cache()
    except OutOfDeviceMemory:
        is_ok = False
    return Played(is_ok, allocator.peak_reserved_bytes, allocator.peak_allocated_bytes, allocator.refused_bytes)


Play = Callable[[Script, int, bool], Played]


class _Engine:
    """Choose between the engines: the readable one until the compiled one is loaded."""

    def __init__(self):
        self._compiled: Play | None = None
        self._lock = threading.Lock()
        self._is_tried = False
        self._played = 0
        self.said = ""

    def play(self, played: Script, capacity_bytes: int, flushes_first: bool) -> Played:
        """Replay by the engine that is ready."""
        if self._compiled is None and not self._is_tried and self._played >= PATIENCE:
            self.load(waits=False)
        self._played += 1
        # The compiled engine knows the default allocator alone.
        chosen = None if played.is_expandable else self._compiled
        return (chosen or play_readably)(played, capacity_bytes, flushes_first)

    def load(self, *, waits: bool = True) -> None:
        """Load the compiled engine, once in a process; unless it `waits`, not while another thread does."""
        if self._is_tried or not self._lock.acquire(blocking=waits):
            return
        try:
            if not self._is_tried:
                self._compiled, self.said = _load_compiled()
                self._is_tried = True
        finally:
            self._lock.release()


def _load_compiled() -> tuple[Play | None, str]:
    """Import numba and compile the engine, or load its code from disk; say in words what was found."""
    try:
        from planner.replay import compiled
    except Exception as error:
        # A broken installation of numba raises more than ImportError, and no answer depends on numba.
        return None, f"readable, for numba cannot be imported ({type(error).__name__}: {error})"

    def play_compiled(played: Script, capacity_bytes: int, flushes_first: bool) -> Played:
        start = played.start
        return Played(
            *compiled.replay(
                played.kinds,
                played.values,
                played.convolution_bytes,
                played.attention_bytes,
                played.convolutions,
                played.cublas_bytes,
                start.births,
                start.sizes,
                start.addresses,
                start.pools,
                start.reserved_bytes,
                start.next_address,
                capacity_bytes,
                flushes_first,
            )
        )

    try:
        play_compiled(_TRIAL, UNLIMITED, False)
    except Exception:
        # The code on disk may be damaged, or the disk full.
        compiled.forget_cache()
        try:
            play_compiled(_TRIAL, UNLIMITED, False)
        except Exception as error:
            return None, f"readable, for numba cannot compile it ({type(error).__name__}: {error})"
    kept = "its code is kept in the user's cache" if compiled.is_cached() else "its code cannot be kept on disk"
    return play_compiled, f"compiled by numba; {kept}"


def _trial() -> Script:
    """Make a script without events, of the types that every script has."""
    numbers, rows = np.zeros(0, np.int64), np.zeros((0, 6), np.int64)
    return Script(NOTHING_LOADED, numbers, numbers, numbers, numbers, rows, 0)


_TRIAL = _trial()
_engine = _Engine()
