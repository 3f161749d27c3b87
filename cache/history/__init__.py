"""The history of measured runs: its file, its rows, its repair, and the runs that ship."""
