"""Concepts changed while a model runs, and what is stored beside a model about its concepts."""
