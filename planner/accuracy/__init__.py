"""How far off predictions were, by run, by GPU, and beside the estimates of other tools."""
