"""Training runs side by side: curves, what reaching a loss took, seeds; as a table, JSON, figures and a page."""
