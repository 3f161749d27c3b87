"""What the pipeline allocates and when, with symbolic sizes: the memory programs."""
