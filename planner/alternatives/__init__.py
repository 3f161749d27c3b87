"""Find what would fit instead: other sizes, batches, options and GPUs."""
