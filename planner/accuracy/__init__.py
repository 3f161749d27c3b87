"""Errors of predictions, by run, by GPU, and beside the estimates of other tools."""
