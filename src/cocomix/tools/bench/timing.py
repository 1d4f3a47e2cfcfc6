"""Comparable times: contestants take turns in one process, so that other load on the machine affects all of them."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Spread:
    """Median and quartiles of measured values."""

    median: float
    low: float
    """First quartile."""
    high: float
    """Third quartile."""


def spread_of(values: Sequence[float]) -> Spread:
    """Median and quartiles of at least one value."""
    if len(values) == 1:
        return Spread(values[0], values[0], values[0])
    low, median, high = statistics.quantiles(values, n=4, method="inclusive")
    return Spread(median, low, high)


def interleaved(
    contestants: Mapping[str, Callable[[], object]], repetitions: int, now: Callable[[], float] | None = None
) -> dict[str, list[float]]:
    """Seconds of every repetition of each contestant.

    Contestants take turns, and each round starts with another one; a first round is not counted.

    Args:
        contestants: functions by name.
        repetitions: rounds that count.
        now: the clock; None: wall-clock time, once the device has done what it was given.
    """
    now = now or _now
    names = list(contestants)
    seconds: dict[str, list[float]] = {name: [] for name in names}
    for repetition in range(repetitions + 1):
        first = repetition % len(names)
        for name in names[first:] + names[:first]:
            started = now()
            contestants[name]()
            if repetition:
                seconds[name].append(now() - started)
    return seconds


def _now() -> float:
    """Seconds, once the device has done what it was given."""
    if torch.cuda.is_initialized():
        torch.cuda.synchronize()
    return time.perf_counter()


def paired_ratio(seconds: Mapping[str, Sequence[float]], over: str, under: str) -> Spread:
    """Median and quartiles of the ratio, in each round, of the seconds of `over` to those of `under`."""
    return spread_of([a / b for a, b in zip(seconds[over], seconds[under], strict=True)])
