"""What one run of a study does: one module for each experiment."""
