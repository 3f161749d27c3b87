"""The GPUs that exist, and shares or parts of them."""
