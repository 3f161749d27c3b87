"""The terminal: one file a command, and the only part of the planner that imports the cache."""
