"""Measured runs as lines of text, and the rules that a line must keep."""
