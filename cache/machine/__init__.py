"""The GPUs, libraries and model folders of this machine."""
