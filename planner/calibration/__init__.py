"""Correct predictions by measured runs."""
