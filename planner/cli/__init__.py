"""The command line: one file for each command, and the only part of the planner that imports the cache."""
