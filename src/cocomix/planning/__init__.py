"""Whole runs by name, put together from files and options, and what they cost before they start."""
