"""The learning rate as a pure function of the step."""

from __future__ import annotations

import math

from cocomix.training.config import OptimizerConfig


def learning_rate(config: OptimizerConfig, step: int, num_steps: int) -> float:
    """Rate of a 0-based step: linear warm-up, then a cosine down to `min_learning_rate_ratio`."""
    warmup_steps = max(1, round(config.warmup_fraction * num_steps))
    if step < warmup_steps:
        return config.learning_rate * (step + 1) / warmup_steps
    progress = (step - warmup_steps) / max(1, num_steps - 1 - warmup_steps)
    floor = config.min_learning_rate_ratio
    return config.learning_rate * (floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * progress)))
