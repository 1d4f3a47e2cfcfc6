"""The optimizer, and its learning rate as a pure function of the step."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from cocomix.training.config import OptimizerConfig


def adamw(model: nn.Module, config: OptimizerConfig) -> torch.optim.AdamW:
    """AdamW with weight decay on matrices only."""
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    groups = [
        {"params": [p for p in parameters if p.ndim >= 2], "weight_decay": config.weight_decay},
        {"params": [p for p in parameters if p.ndim < 2], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=config.learning_rate, betas=(config.beta1, config.beta2), fused=True)


def clip_in_step(optimizer: torch.optim.Optimizer, norm: Tensor, max_norm: float) -> None:
    """Have the optimizer's next step scale the gradients down to `max_norm`; on their own they would be read once more.

    Args:
        optimizer: from `adamw`; its step overwrites the gradients with the scaled ones.
        norm: norm of all gradients.
        max_norm: the largest norm to pass.
    """
    # The fused kernel divides by this, as after a loss that was scaled up. The constant is `clip_grad_norm_`'s.
    optimizer.grad_scale = ((norm + 1e-6) / max_norm).clamp(min=1.0)  # type: ignore[attr-defined]


def learning_rate(config: OptimizerConfig, step: int, num_steps: int) -> float:
    """Rate at a 0-based step: linear warm-up, then a cosine down to `min_learning_rate_ratio` of the maximum."""
    warmup_steps = max(1, round(config.warmup_fraction * num_steps))
    if step < warmup_steps:
        return config.learning_rate * (step + 1) / warmup_steps
    progress = (step - warmup_steps) / max(1, num_steps - 1 - warmup_steps)
    floor = config.min_learning_rate_ratio
    return config.learning_rate * (floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * progress)))
