"""Cards for the concepts of a model."""
