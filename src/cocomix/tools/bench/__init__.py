"""Benchmarks of every fast path against its dense reference and plain next-token prediction."""
