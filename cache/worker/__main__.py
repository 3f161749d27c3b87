"""Run a worker: ``python -m cache.worker cuda|cpu``."""

from cache.worker.serve import main

if __name__ == "__main__":
    main()
