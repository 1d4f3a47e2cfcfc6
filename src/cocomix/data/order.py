"""The order of training data: a pure function of (seed, step), unaffected by interruptions."""

from __future__ import annotations

import functools

import numpy as np


def windows_of_step(seed: int, step: int, batch_size: int, num_windows: int) -> np.ndarray:
    """Windows of one step, [batch_size] int64: every epoch is its own permutation, and batches may span two epochs.

    Args:
        seed: seed of the order.
        step: 0-based step.
        batch_size: windows per step.
        num_windows: windows per epoch.
    """
    positions = np.arange(step * batch_size, (step + 1) * batch_size)
    return np.array([_epoch_order(seed, int(p) // num_windows, num_windows)[p % num_windows] for p in positions])


@functools.lru_cache(maxsize=2)
def _epoch_order(seed: int, epoch: int, num_windows: int) -> np.ndarray:
    return np.random.default_rng([seed, epoch]).permutation(num_windows)
