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

With ``PYTORCH_CUDA_ALLOC_CONF=expandable_segments:True`` other rules hold:

- Each pool reserves one range of addresses, larger than the device, and maps *pages* of memory into it as it needs
  them: of 2 MiB in the small pool, of 20 MiB in the large one. Reserved is what is mapped.
- The rest of a block becomes a free block whatever its size, so no block is larger than its request, rounded.
- Without a free block that is large enough, the lowest unmapped range is extended by whole pages, together with the
  free block before it. What the last page has beyond the request is a free block.
- Of the free blocks that are large enough, the smallest is taken, where the unmapped range behind a block counts with
  it; the search stops at the first block that is no better than the one before it.
- Blocks merge with free neighbours, unmapped ranges with unmapped ones, and never the one with the other.
- When the device is full, every page that is free as a whole is unmapped; a free block keeps its two ends.

Source: ``c10/cuda/CUDACachingAllocator.cpp`` of PyTorch 2.13 (``malloc``, ``get_free_block``, ``should_split``,
``alloc_block``, ``release_cached_blocks``) with its default settings; for expandable segments also
``try_allocate_expandable_block``, ``find_expandable_block``, ``map_block``, ``unmap_block``, ``release_blocks`` and
``ExpandableSegment``. The sizes of pages are the defaults in ``c10/core/AllocatorConfig.h``.

Uncertain with expandable segments, and without effect unless addresses run out: a range is taken to be 9/8 of the
capacity, while the allocator takes 9/8 of all memory of the GPU, and a second range is taken to lie above the first,
while the driver chooses its place. No run with expandable segments was measured.

Leaves out: several streams, CUDA graphs' private pools, and the settings that nobody sets by default
(``max_split_size_mb``, ``garbage_collection_threshold``, ``roundup_power2_divisions``, ``large_segment_size_mb``).
"""

from bisect import bisect_left, insort

from planner.units import MIB

MIN_BLOCK = 512  # kMinBlockSize
SMALL_SIZE = MIB  # kSmallSize: the largest request that the small pool serves
SMALL_SEGMENT = 2 * MIB  # kSmallBuffer
LARGE_SEGMENT = 20 * MIB  # kLargeBuffer: a segment for several middling requests
MIN_LARGE_ALLOC = 10 * MIB  # kMinLargeAlloc: from here on a request gets a segment of its own
ROUND_LARGE = 2 * MIB  # kRoundLarge

SMALL_PAGE = SMALL_SEGMENT  # the pages of an expandable segment in the small pool
LARGE_PAGE = LARGE_SEGMENT  # and in the large one
# A segment's addresses start at a multiple of both, so that an address tells which page it is in.
_ALIGNMENT = LARGE_PAGE
# Addresses of an expandable segment where memory is unlimited: more than any request could ask for.
_ENDLESS = 2**60 // _ALIGNMENT * _ALIGNMENT

# A block whose remainder is not split off is at most this much larger than the request.
MAX_UNSPLIT_BYTES = SMALL_SIZE


class OutOfDeviceMemory(Exception):
    """Report that the device is full, and nothing more can be given back."""


class Block:
    """Hold a piece of a segment, linked to its neighbours by address.

    Of an expandable segment, a piece without memory is a block as well, neither `is_mapped` nor free.
    """

    __slots__ = ("address", "is_free", "is_mapped", "next", "pool", "previous", "size")

    def __init__(self, pool: "Pool", address: int, size: int):
        self.pool, self.address, self.size = pool, address, size
        self.previous: Block | None = None
        self.next: Block | None = None
        self.is_free = False
        self.is_mapped = True

    @property
    def can_grow_into(self) -> bool:
        """Tell whether the block may become part of a new one: it is free, or without memory."""
        return self.is_free or not self.is_mapped

    @property
    def room(self) -> int:
        """Compute the bytes that the block has with the unmapped range behind it."""
        return self.size + (self.next.size if self.next is not None and not self.next.is_mapped else 0)

    def insert_after(self, before: "Block | None", after: "Block | None") -> None:
        """Link the block between these neighbours."""
        self.previous, self.next = before, after
        if before is not None:
            before.next = self
        if after is not None:
            after.previous = self

    def absorb(self, neighbour: "Block") -> None:
        """Take over the addresses of a neighbour, which is no block any longer."""
        self.size += neighbour.size
        if neighbour is self.previous:
            self.address = neighbour.address
            self.insert_after(neighbour.previous, self.next)
        else:
            self.insert_after(self.previous, neighbour.next)


class Pool:
    """Hold the free blocks of one kind, sorted by size and then by address.

    Of expandable segments also the blocks without memory, sorted by address; pages have `page_bytes`.
    """

    __slots__ = ("free", "min_remainder", "page_bytes", "unmapped")

    def __init__(self, min_remainder: int, page_bytes: int):
        self.min_remainder, self.page_bytes = min_remainder, page_bytes
        self.free: list[tuple[int, int, Block]] = []
        self.unmapped: list[tuple[int, Block]] = []

    def add(self, block: Block) -> None:
        """Add a block that has become free."""
        block.is_free = True
        insort(self.free, (block.size, block.address, block))

    def remove(self, block: Block) -> None:
        """Remove a block, which is free no longer."""
        block.is_free = False
        del self.free[bisect_left(self.free, (block.size, block.address))]

    def add_unmapped(self, block: Block) -> None:
        """Add a block that has no memory, or none any longer."""
        block.is_mapped = False
        insort(self.unmapped, (block.address, block))

    def remove_unmapped(self, block: Block) -> None:
        """Remove a block that gets memory, or whose addresses another block takes over."""
        del self.unmapped[bisect_left(self.unmapped, (block.address,))]

    def pages_within(self, block: Block) -> tuple[int, int]:
        """Give the first and the last address of the pages that lie in the block as a whole."""
        page = self.page_bytes
        first, last = -(-block.address // page) * page, (block.address + block.size) // page * page
        return first, max(first, last)


class CachingAllocator:
    """Simulate the allocator of one process; without `capacity_bytes` memory is unlimited.

    `expandable` follows the rules of expandable segments. All sizes are bytes. `allocated_bytes` counts blocks in use,
    `reserved_bytes` segments, of expandable ones what is mapped; their peaks are kept until `reset_peaks`.
    `num_alloc_retries` counts, as torch's statistic of that name does, how often a full device made the allocator flush
    its cache.

    >>> allocator = CachingAllocator()
    >>> block = allocator.malloc(3 * MIB)
    >>> allocator.allocated_bytes // MIB, allocator.reserved_bytes // MIB
    (3, 20)
    >>> allocator.free(block)
    >>> allocator.allocated_bytes, allocator.reserved_bytes // MIB
    (0, 20)
    >>> allocator = CachingAllocator(expandable=True)
    >>> blocks = [allocator.malloc(11 * MIB) for _ in range(3)]
    >>> allocator.allocated_bytes // MIB, allocator.reserved_bytes // MIB
    (33, 40)
    """

    def __init__(self, capacity_bytes: int | None = None, expandable: bool = False):
        self.capacity_bytes, self.expandable = capacity_bytes, expandable
        self.small = Pool(MIN_BLOCK, SMALL_PAGE)
        self.large = Pool(MIN_BLOCK if expandable else SMALL_SIZE + 1, LARGE_PAGE)
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
            if self.expandable:
                index = self._least_room(pool, index)
            block = pool.free.pop(index)[2]
            block.is_free = False
        else:
            block = self._extend(pool, size) if self.expandable else self._grow(pool, size)
        if block.size - size >= pool.min_remainder:
            self._split(block, size)
        self.allocated_bytes += block.size
        if self.allocated_bytes > self.peak_allocated_bytes:
            self.peak_allocated_bytes = self.allocated_bytes
        return block

    def free(self, block: Block) -> None:
        """Free a block; its segment stays reserved."""
        self.allocated_bytes -= block.size
        self._add_merged(block)

    def empty_cache(self) -> None:
        """Give back every segment that is free as a whole; of expandable segments, every such page."""
        for pool in (self.large, self.small):
            for size, _, block in list(pool.free):
                if self.expandable:
                    self._unmap(block)
                elif block.previous is None and block.next is None:
                    pool.remove(block)
                    self.reserved_bytes -= size

    def releasable_bytes(self) -> int:
        """Compute the bytes that `empty_cache` would give back."""
        blocks = [block for pool in (self.small, self.large) for _, _, block in pool.free]
        if self.expandable:
            return sum(last - first for first, last in (block.pool.pages_within(block) for block in blocks))
        return sum(block.size for block in blocks if block.previous is None and block.next is None)

    def reset_peaks(self) -> None:
        """Set both peaks to the present values."""
        self.peak_allocated_bytes, self.peak_reserved_bytes = self.allocated_bytes, self.reserved_bytes

    def _add_merged(self, block: Block) -> None:
        """Make the block a free one, together with its free neighbours."""
        for neighbour in (block.previous, block.next):
            if neighbour is not None and neighbour.is_free:
                neighbour.pool.remove(neighbour)
                block.absorb(neighbour)
        block.pool.add(block)

    def _split(self, block: Block, size: int) -> None:
        """Cut the block to this size, and make a free block of the rest."""
        rest = Block(block.pool, block.address + size, block.size - size)
        rest.insert_after(block, block.next)
        block.size = size
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
        self._add_reserved(size)

    def _add_reserved(self, size: int) -> None:
        self.reserved_bytes += size
        if self.reserved_bytes > self.peak_reserved_bytes:
            self.peak_reserved_bytes = self.reserved_bytes

    def _has_room_for(self, size: int) -> bool:
        return self.capacity_bytes is None or self.reserved_bytes + size <= self.capacity_bytes

    @staticmethod
    def _least_room(pool: Pool, index: int) -> int:
        """Find the free block to take from this index on, by the room that each has."""
        while index + 1 < len(pool.free) and pool.free[index + 1][2].room < pool.free[index][2].room:
            index += 1
        return index

    def _extend(self, pool: Pool, size: int) -> Block:
        """Map pages for a request of this size, after a flush if the device is full, and give a block."""
        block = self._try_extend(pool, size)
        if block is None:
            self.num_alloc_retries += 1
            self.empty_cache()
            block = self._try_extend(pool, size)
            if block is None:
                raise OutOfDeviceMemory
        return block

    def _try_extend(self, pool: Pool, size: int) -> Block | None:
        """Map pages, and give a block of at least this size; None if the device is full.

        Pages of one range that were mapped before another range found no room stay mapped.
        """
        block = self._range_for(pool, size)
        if not block.is_mapped and not self._map(block, min(block.size, size)):
            return None
        while block.size < size:
            behind = block.next
            assert behind is not None, "a range was found too short"
            if not self._map(behind, min(size - block.size, behind.size)):
                return None
            # The pages have merged with the free block before them.
            block = behind
        pool.remove(block)
        return block

    def _range_for(self, pool: Pool, size: int) -> Block:
        """Find the lowest unmapped block that has room with its neighbours, or make a new segment.

        The block before it, if free, is returned in its place.
        """
        for _, unmapped in pool.unmapped:
            first = unmapped.previous if unmapped.previous is not None and unmapped.previous.is_free else unmapped
            found, block = 0, first
            while found < size and block is not None and block.can_grow_into:
                found += block.size
                block = block.next
            if found >= size:
                return first
        space = _ENDLESS if self.capacity_bytes is None else self.capacity_bytes + self.capacity_bytes // 8
        address = -(-self._next_address // _ALIGNMENT) * _ALIGNMENT
        segment = Block(pool, address, -(-space // pool.page_bytes) * pool.page_bytes)
        # The gap makes sure that blocks of two segments are not taken for neighbours.
        self._next_address = address + segment.size + MIN_BLOCK
        pool.add_unmapped(segment)
        return segment

    def _map(self, block: Block, size: int) -> bool:
        """Map pages for this many bytes from the start of an unmapped block, or none of them."""
        pool = block.pool
        mapped = -(-size // pool.page_bytes) * pool.page_bytes
        if not self._has_room_for(mapped):
            return False
        pool.remove_unmapped(block)
        block.is_mapped = True
        if mapped < block.size:
            rest = Block(pool, block.address + mapped, block.size - mapped)
            rest.insert_after(block, block.next)
            block.size = mapped
            pool.add_unmapped(rest)
        self._add_merged(block)
        self._add_reserved(mapped)
        return True

    def _unmap(self, block: Block) -> None:
        """Give back the pages that lie in a free block as a whole; its ends stay free blocks."""
        pool = block.pool
        first, last = pool.pages_within(block)
        if first == last:
            return
        pool.remove(block)
        if before := first - block.address:
            end = Block(pool, block.address, before)
            end.insert_after(block.previous, block)
            pool.add(end)
        if after := block.address + block.size - last:
            end = Block(pool, last, after)
            end.insert_after(block, block.next)
            pool.add(end)
        block.address, block.size = first, last - first
        self.reserved_bytes -= block.size
        for neighbour in (block.previous, block.next):
            if neighbour is not None and not neighbour.is_mapped:
                pool.remove_unmapped(neighbour)
                block.absorb(neighbour)
        # A segment without memory gives back its addresses as well.
        if block.previous is not None or block.next is not None:
            pool.add_unmapped(block)

    @staticmethod
    def segment_size(size: int) -> int:
        """Compute the bytes to reserve when a request of this size finds no free block."""
        if size <= SMALL_SIZE:
            return SMALL_SEGMENT
        if size < MIN_LARGE_ALLOC:
            return LARGE_SEGMENT
        return (size + ROUND_LARGE - 1) // ROUND_LARGE * ROUND_LARGE
