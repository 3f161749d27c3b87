"""Make memory programs from the real diffusers modules; no other part of the planner imports torch."""
