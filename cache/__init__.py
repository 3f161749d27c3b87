"""Keep what is expensive to make again: measured runs, loaded pipelines, facts about GPUs and models."""
