"""All measurements that need a GPU, in one command: ``python -m cache.gpu_check OUT --minutes 8``."""
