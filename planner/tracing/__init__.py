"""Make memory programs from the real diffusers modules; the only part of the planner that imports torch."""
