"""Pure functions of the step: which windows, which learning rate."""

from __future__ import annotations

import functools
import math

import numpy as np

from cocomix.training.config import OptimizerConfig


def windows_of_step(seed: int, step: int, batch_size: int, num_windows: int) -> np.ndarray:
    """Windows of one step: every epoch is its own permutation, and batches run across the end of an epoch.

    Args:
        seed: of the order.
        step: 0-based.
        batch_size: windows in a step.
        num_windows: windows in an epoch.
    """
    positions = np.arange(step * batch_size, (step + 1) * batch_size)
    return np.array([_epoch_order(seed, int(p) // num_windows, num_windows)[p % num_windows] for p in positions])


@functools.lru_cache(maxsize=2)
def _epoch_order(seed: int, epoch: int, num_windows: int) -> np.ndarray:
    return np.random.default_rng([seed, epoch]).permutation(num_windows)


def learning_rate(config: OptimizerConfig, step: int, num_steps: int) -> float:
    """Rate of a 0-based step: linear warm-up, then a cosine down to `min_learning_rate_ratio`."""
    warmup_steps = max(1, round(config.warmup_fraction * num_steps))
    if step < warmup_steps:
        return config.learning_rate * (step + 1) / warmup_steps
    progress = (step - warmup_steps) / max(1, num_steps - 1 - warmup_steps)
    floor = config.min_learning_rate_ratio
    return config.learning_rate * (floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * progress)))
