"""The statistics of the steering score, by their definitions."""

from __future__ import annotations

import itertools
import math
import statistics


def sign_flip_p_value(differences: list[list[float]]) -> float:
    """Share of all sign patterns whose largest t over the strengths is at least the one found; a row is a strength."""

    def t(row: list[float]) -> float:
        error = statistics.stdev(row) / math.sqrt(len(row))
        return statistics.fmean(row) / error if error else 0.0

    patterns = list(itertools.product((1, -1), repeat=len(differences[0])))
    largest = [max(t([s * d for s, d in zip(signs, row, strict=True)]) for row in differences) for signs in patterns]
    return sum(found >= largest[0] - 1e-9 for found in largest) / len(patterns)


def benjamini_hochberg(p_values: list[float]) -> list[float]:
    """For each p value the smallest rate q at which the step-up procedure rejects it."""
    order = sorted(range(len(p_values)), key=lambda i: p_values[i])
    adjusted = [1.0] * len(p_values)
    for rank, i in enumerate(order):
        later = [p_values[j] * len(p_values) / (place + 1) for place, j in enumerate(order) if place >= rank]
        adjusted[i] = min(1.0, *later)
    return adjusted


def repetition(tokens: list[int], length: int = 4) -> float:
    """Share of the runs that occurred before."""
    seen: list[list[int]] = []
    repeated = 0
    for start in range(len(tokens) - length + 1):
        run = tokens[start : start + length]
        repeated += run in seen
        seen.append(run)
    return repeated / len(seen)
