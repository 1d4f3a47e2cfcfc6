"""Which cells each table has."""

from __future__ import annotations

from benchmarks.evidence.cells import Cell

SEEDS = (0, 1, 2)
MAIN = (
    "ntp", "ntp-equal-parameters", "ntp-equal-flops", "pause", "kd-0.1", "published", "recommended",
)
EXPLORATION = ("ntp", "add-lambda-1", "add-lambda-0.3", "add-16-labels", "add")


def exploration() -> list[Cell]:
    return [Cell("standard_library", "weak", "small", variant, "2M", 0) for variant in EXPLORATION]


TABLES = {"exploration": exploration}
