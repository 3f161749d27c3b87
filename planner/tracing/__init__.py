"""Make memory programs from the real diffusers modules.

No other part of the planner imports torch.
"""
