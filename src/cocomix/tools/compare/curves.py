"""Validation curves: loss against tokens, FLOPs and seconds."""

from __future__ import annotations

import itertools
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from cocomix.base.kinds import METRIC_AXES

CURVE_AXES = METRIC_AXES

Curve = Sequence[Mapping[str, float | int]]
"""Points in order, each with `validation_loss` and the axes above."""


def series_of(names: Collection[str]) -> dict[str, int]:
    """The number of each run's colour by its name: NTP has the first and CoCoMix the second in every figure.

    Args:
        names: of folders, or paths; other runs take the colours from the third on, or all where there is neither.
    """
    fixed: dict[str, int] = {}
    for series, start in enumerate(("ntp", "cocomix")):
        alike = [name for name in names if name.rpartition("/")[2].casefold().startswith(start)]
        fixed |= {min(alike, key=len): series} if alike else {}
    free = itertools.count(2 if fixed else 0)
    return {name: fixed[name] if name in fixed else next(free) for name in names}


def validation_curve(metrics: Sequence[Mapping[str, Any]]) -> list[dict[str, float | int]]:
    """The validation points among the lines of a run's metrics."""
    return [
        {axis: line[axis] for axis in (*CURVE_AXES, "validation_loss")} for line in metrics if "validation_loss" in line
    ]


def units_to_match(
    curve: Sequence[Mapping[str, float]], reference: Sequence[Mapping[str, float]], axis: str
) -> float | None:
    """Where a validation curve first reaches the last loss of another, linearly between points; None: never.

    The curve belongs to one run, whose learning rate has not yet decayed at that point: a run planned to end there would have
    a lower loss. The number therefore errs on the high side.
    """
    target = reference[-1]["validation_loss"]
    previous: Mapping[str, float] | None = None
    for point in curve:
        if point["validation_loss"] <= target:
            if previous is None:
                return point[axis]
            drop = previous["validation_loss"] - point["validation_loss"]
            share = (previous["validation_loss"] - target) / drop
            return previous[axis] + share * (point[axis] - previous[axis])
        previous = point
    return None


def loss_at(curve: Curve, axis: str, amount: float | int) -> float | None:
    """Validation loss of a curve at an amount of tokens, FLOPs or seconds, linearly between points; None outside of it."""
    for before, after in itertools.pairwise(curve):
        if before[axis] <= amount <= after[axis]:
            share = (amount - before[axis]) / (after[axis] - before[axis])
            return before["validation_loss"] + share * (after["validation_loss"] - before["validation_loss"])
    return None
