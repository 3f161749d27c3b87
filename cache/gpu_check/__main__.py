"""Start the GPU check: ``python -m cache.gpu_check``."""

import sys

from cache.gpu_check.command import main

if __name__ == "__main__":
    sys.exit(main())
