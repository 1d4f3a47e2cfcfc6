"""Concept labels: attribution, extraction, and labels computed while a student trains."""
