"""The report of an experiment: what happened, in words, figures and numbers."""
