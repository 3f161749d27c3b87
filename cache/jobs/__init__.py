"""Measuring jobs: the queue, the worker process it starts, and sweeps of many requests."""
