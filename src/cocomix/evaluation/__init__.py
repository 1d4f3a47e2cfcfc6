"""Evaluation of a model: exact validation loss, causal probes of its concept stream, and benchmarks."""
