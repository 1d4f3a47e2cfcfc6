"""Means over seeds and what is known about them."""

from __future__ import annotations

import itertools
import statistics
from collections.abc import Sequence

import numpy as np

LEVEL = 0.95
#: Of fewer values the interval would be little more than the values themselves.
MIN_PAIRS = 3
#: Up to here every resample is gone through (6**6 = 46,656), so that nothing is left to chance.
MAX_EXACT = 6
NUM_RESAMPLES = 20_000


def bootstrap_interval(values: Sequence[float], level: float = LEVEL, seed: int = 0) -> tuple[float, float] | None:
    """Percentile bootstrap interval of a mean; of paired differences it is the paired bootstrap. None of fewer than three.

    Of few values it is coarse and too short: of three there are 27 resamples, and none has a mean beyond the three.

    Args:
        values: independent, such as one difference a seed.
        level: share of the resampled means inside.
        seed: of the resamples, where they are drawn.
    """
    if len(values) < MIN_PAIRS:
        return None
    array = np.asarray(values, dtype=np.float64)
    if len(array) <= MAX_EXACT:
        resamples = array[np.array(list(itertools.product(range(len(array)), repeat=len(array))))]
    else:
        resamples = array[np.random.default_rng(seed).integers(0, len(array), (NUM_RESAMPLES, len(array)))]
    low, high = np.quantile(resamples.mean(axis=1), [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def mean_and_spread(values: Sequence[float]) -> dict[str, float | None]:
    """Mean and sample standard deviation; None where there are too few values."""
    return {
        "mean": statistics.fmean(values) if values else None,
        "standard_deviation": statistics.stdev(values) if len(values) > 1 else None,
    }
