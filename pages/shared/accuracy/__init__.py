"""The parts of the Accuracy page."""
