"""Measurements behind the documentation's figures; each writes one JSON file into `benchmarks/results/`."""
