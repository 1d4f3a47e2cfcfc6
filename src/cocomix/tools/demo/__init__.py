"""The whole method at a size that two cores can run, and its report."""
