"""The parts of the Plan page, from the verdicts to the report."""
