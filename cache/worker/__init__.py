"""The child process that runs a real pipeline: the only part of the cache that imports torch."""
