"""Measuring jobs: the queue, the worker process it starts, how long a run takes, and sweeps of many requests."""
