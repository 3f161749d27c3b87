"""What this machine has: GPUs, libraries, model folders."""
