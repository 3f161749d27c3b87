"""Play a memory program on a simulated GPU: kernels, allocator, peaks, the minimum memory."""
