"""Simulate the CUDA caching allocator of PyTorch: the same rules, without any memory.

``cudaMalloc`` is slow and synchronises the device, so PyTorch asks for memory in *segments*, cuts *blocks* from them,
and keeps what is freed. What a run *reserves* follows from the order of its allocations by these rules alone:

- A request is rounded up to a multiple of 512 bytes. Up to 1 MiB it is served from the small pool, else from the large.
- The smallest free block that is large enough is taken, of equal ones that at the lowest address.
- Without such a block a new segment is reserved: 2 MiB in the small pool; in the large one 20 MiB for requests under
  10 MiB, else the request rounded up to 2 MiB.
- The rest of a block becomes a free block of its own if it is at least 512 bytes in the small pool, or more than
  1 MiB in the large one. Else the block stays whole, and all of it counts as allocated.
- A freed block merges with free neighbours of its segment.
- When the device is full, every segment that is free as a whole is given back, and the device is asked once more. If
  that fails too, the run is out of memory.

Source: ``c10/cuda/CUDACachingAllocator.cpp`` of PyTorch 2.13 (``malloc``, ``get_free_block``, ``should_split``,
``alloc_block``, ``release_cached_blocks``) with its default settings.

Leaves out: several streams, CUDA graphs' private pools, and the settings that nobody sets by default
(``expandable_segments``, ``max_split_size_mb``, ``garbage_collection_threshold``, ``roundup_power2_divisions``).
"""

from bisect import bisect_left, insort

from planner.units import MIB

MIN_BLOCK = 512  # kMinBlockSize
SMALL_SIZE = MIB  # kSmallSize: the largest request that the small pool serves
SMALL_SEGMENT = 2 * MIB  # kSmallBuffer
LARGE_SEGMENT = 20 * MIB  # kLargeBuffer: a segment for several middling requests
MIN_LARGE_ALLOC = 10 * MIB  # kMinLargeAlloc: from here on a request gets a segment of its own
ROUND_LARGE = 2 * MIB  # kRoundLarge

# A block whose remainder is not split off is at most this much larger than the request.
MAX_UNSPLIT_BYTES = SMALL_SIZE


class OutOfDeviceMemory(Exception):
    """Report that the device is full, and nothing more can be given back."""


class Block:
    """Hold a piece of a segment, linked to its neighbours by address."""

    __slots__ = ("address", "is_free", "next", "pool", "previous", "size")

    def __init__(self, pool: "Pool", address: int, size: int):
        self.pool, self.address, self.size = pool, address, size
        self.previous: Block | None = None
        self.next: Block | None = None
        self.is_free = False


class Pool:
    """Hold the free blocks of one kind, sorted by size and then by address."""

    __slots__ = ("free", "min_remainder")

    def __init__(self, min_remainder: int):
        self.min_remainder = min_remainder
        self.free: list[tuple[int, int, Block]] = []

    def add(self, block: Block) -> None:
        """Add a block that has become free."""
        block.is_free = True
        insort(self.free, (block.size, block.address, block))

    def remove(self, block: Block) -> None:
        """Remove a block, which is free no longer."""
        block.is_free = False
        del self.free[bisect_left(self.free, (block.size, block.address))]


class CachingAllocator:
    """Simulate the allocator of one process; without `capacity_bytes` memory is unlimited.

    All sizes are bytes. `allocated_bytes` counts blocks in use, `reserved_bytes` segments; their peaks are kept until
    `reset_peaks`. `num_alloc_retries` counts, as torch's statistic of that name does, how often a full device made the
    allocator flush its cache.

    >>> allocator = CachingAllocator()
    >>> block = allocator.malloc(3 * MIB)
    >>> allocator.allocated_bytes // MIB, allocator.reserved_bytes // MIB
    (3, 20)
    >>> allocator.free(block)
    >>> allocator.allocated_bytes, allocator.reserved_bytes // MIB
    (0, 20)
    """

    def __init__(self, capacity_bytes: int | None = None):
        self.capacity_bytes = capacity_bytes
        self.small = Pool(min_remainder=MIN_BLOCK)
        self.large = Pool(min_remainder=SMALL_SIZE + 1)
        self.allocated_bytes = self.peak_allocated_bytes = 0
        self.reserved_bytes = self.peak_reserved_bytes = 0
        self.num_alloc_retries = 0
        self._next_address = 0

    def malloc(self, size_bytes: int) -> Block:
        """Allocate a block of at least this size.

        Raises:
            OutOfDeviceMemory: the device is full even after the cache was flushed.
        """
        size = (size_bytes + MIN_BLOCK - 1) // MIN_BLOCK * MIN_BLOCK or MIN_BLOCK
        pool = self.small if size <= SMALL_SIZE else self.large
        index = bisect_left(pool.free, (size,))
        if index < len(pool.free):
            block = pool.free.pop(index)[2]
            block.is_free = False
        else:
            block = self._grow(pool, size)
        if block.size - size >= pool.min_remainder:
            self._split(block, size)
        self.allocated_bytes += block.size
        if self.allocated_bytes > self.peak_allocated_bytes:
            self.peak_allocated_bytes = self.allocated_bytes
        return block

    def free(self, block: Block) -> None:
        """Free a block; its segment stays reserved."""
        self.allocated_bytes -= block.size
        before, after = block.previous, block.next
        if before is not None and before.is_free:
            before.pool.remove(before)
            block.address, block.size = before.address, before.size + block.size
            block.previous = before.previous
            if block.previous is not None:
                block.previous.next = block
        if after is not None and after.is_free:
            after.pool.remove(after)
            block.size += after.size
            block.next = after.next
            if block.next is not None:
                block.next.previous = block
        block.pool.add(block)

    def empty_cache(self) -> None:
        """Give back every segment that is free as a whole."""
        for pool in (self.small, self.large):
            for size, _, block in list(pool.free):
                if block.previous is None and block.next is None:
                    pool.remove(block)
                    self.reserved_bytes -= size

    def reset_peaks(self) -> None:
        """Set both peaks to the present values."""
        self.peak_allocated_bytes, self.peak_reserved_bytes = self.allocated_bytes, self.reserved_bytes

    def _split(self, block: Block, size: int) -> None:
        """Cut the block to this size, and make a free block of the rest."""
        rest = Block(block.pool, block.address + size, block.size - size)
        rest.previous, rest.next = block, block.next
        if rest.next is not None:
            rest.next.previous = rest
        block.next, block.size = rest, size
        block.pool.add(rest)

    def _grow(self, pool: Pool, size: int) -> Block:
        """Reserve a new segment for a request of this size, and give it as one block."""
        segment = self.segment_size(size)
        self._reserve(segment)
        block = Block(pool, self._next_address, segment)
        # The gap makes sure that blocks of two segments are not taken for neighbours.
        self._next_address += segment + MIN_BLOCK
        return block

    def _reserve(self, size: int) -> None:
        """Reserve memory of the device, after a flush of the cache if the device is full."""
        if not self._has_room_for(size):
            self.num_alloc_retries += 1
            self.empty_cache()
            if not self._has_room_for(size):
                raise OutOfDeviceMemory
        self.reserved_bytes += size
        if self.reserved_bytes > self.peak_reserved_bytes:
            self.peak_reserved_bytes = self.reserved_bytes

    def _has_room_for(self, size: int) -> bool:
        return self.capacity_bytes is None or self.reserved_bytes + size <= self.capacity_bytes

    @staticmethod
    def segment_size(size: int) -> int:
        """Compute the bytes to reserve when a request of this size finds no free block."""
        if size <= SMALL_SIZE:
            return SMALL_SEGMENT
        if size < MIN_LARGE_ALLOC:
            return LARGE_SEGMENT
        return (size + ROUND_LARGE - 1) // ROUND_LARGE * ROUND_LARGE
