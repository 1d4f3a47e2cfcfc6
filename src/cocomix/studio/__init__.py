"""A page on this machine where a person reads what a model thinks in, and steers it."""
