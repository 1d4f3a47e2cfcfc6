"""What a step minimises: one class an objective, with all that depends on it."""
