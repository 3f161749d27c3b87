"""The controls that ask for a request and for GPUs."""
