"""Means over seeds and their intervals.

A bootstrap of few seeds is computed exactly from every resample, which `scipy.stats.bootstrap` does not do; and importing
`scipy.stats` would take longer than a whole comparison. numpy is loaded at the first interval only.
"""

from __future__ import annotations

import itertools
import statistics
from collections.abc import Sequence

LEVEL = 0.95
#: An interval of fewer values would say little more than the values themselves.
MIN_PAIRS = 3
#: Up to this many values the interval uses every resample (6**6 = 46,656), without chance.
MAX_EXACT = 6
NUM_RESAMPLES = 20_000


def bootstrap_interval(values: Sequence[float], level: float = LEVEL, seed: int = 0) -> tuple[float, float] | None:
    """Percentile bootstrap interval of a mean; for paired differences, the paired bootstrap. None for fewer than three.

    With few values it is coarse and too short: three values have 27 resamples, and no mean lies beyond the three.

    Args:
        values: independent, such as one difference per seed.
        level: share of the resampled means inside the interval.
        seed: of random resamples.
    """
    if len(values) < MIN_PAIRS:
        return None
    import numpy as np

    array = np.asarray(values, dtype=np.float64)
    if len(array) <= MAX_EXACT:
        resamples = array[np.array(list(itertools.product(range(len(array)), repeat=len(array))))]
    else:
        resamples = array[np.random.default_rng(seed).integers(0, len(array), (NUM_RESAMPLES, len(array)))]
    low, high = np.quantile(resamples.mean(axis=1), [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def mean_and_spread(values: Sequence[float]) -> dict[str, float | None]:
    """Mean and sample standard deviation; None if there are too few values."""
    return {
        "mean": statistics.fmean(values) if values else None,
        "standard_deviation": statistics.stdev(values) if len(values) > 1 else None,
    }
