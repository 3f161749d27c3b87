"""What is expensive to make again: measured runs, loaded pipelines, facts about cards and models."""
