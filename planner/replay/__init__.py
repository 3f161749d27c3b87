"""Play a memory program on a GPU that is not there: kernels, allocator, peaks, the least memory."""
