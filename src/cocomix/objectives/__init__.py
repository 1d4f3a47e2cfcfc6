"""Objectives, which a step minimises: each is one class that owns everything about itself."""
