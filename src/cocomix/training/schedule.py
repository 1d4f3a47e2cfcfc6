"""The learning rate and the weights of objectives as pure functions of the step."""

from __future__ import annotations

import math

from cocomix.training.config import OptimizerConfig, Schedule


def learning_rate(config: OptimizerConfig, step: int, num_steps: int) -> float:
    """Rate of a 0-based step: linear warm-up, then a cosine down to `min_learning_rate_ratio`."""
    warmup_steps = max(1, round(config.warmup_fraction * num_steps))
    if step < warmup_steps:
        return config.learning_rate * (step + 1) / warmup_steps
    progress = (step - warmup_steps) / max(1, num_steps - 1 - warmup_steps)
    floor = config.min_learning_rate_ratio
    return config.learning_rate * (floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * progress)))


def scheduled_weight(weight: float, schedule: Schedule, step: int, num_steps: int) -> float:
    """Weight at a 0-based step: the whole of it at the first, and unless it is constant nothing at the last.

    linear: 1 - x;  cosine: (1 + cos(pi x)) / 2;  x = step / (num_steps - 1)
    """
    if schedule == "constant":
        return weight
    progress = step / max(1, num_steps - 1)
    share = 1 - progress if schedule == "linear" else 0.5 * (1 + math.cos(math.pi * progress))
    return weight * share
