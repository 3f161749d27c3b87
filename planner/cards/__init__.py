"""Which GPUs exist, and shares or parts of them."""
