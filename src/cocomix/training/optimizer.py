"""The optimizer, and its learning rate as a pure function of the step."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from cocomix.training.config import OptimizerConfig


def adamw(model: nn.Module, config: OptimizerConfig, pretrained: nn.Module | None = None) -> torch.optim.AdamW:
    """AdamW with weight decay on matrices only, over what is not frozen.

    Args:
        model: all that is trained.
        config: its settings.
        pretrained: the part of it that is trained already, which learns at `pretrained_learning_rate`.

    Each group of parameters holds its `maximum`, for `learning_rate`.
    """
    old_rate = config.pretrained_learning_rate or config.learning_rate / 10
    old = set() if pretrained is None else set(pretrained.parameters())
    groups = []
    for is_old, rate in ((False, config.learning_rate), (True, old_rate)):
        parameters = [p for p in model.parameters() if p.requires_grad and (p in old) == is_old]
        matrices, others = ([p for p in parameters if (p.ndim >= 2) == is_matrix] for is_matrix in (True, False))
        groups.append({"params": matrices, "lr": rate, "maximum": rate, "weight_decay": config.weight_decay})
        groups.append({"params": others, "lr": rate, "maximum": rate, "weight_decay": 0.0})
    groups = [group for group in groups if group["params"]]
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


def learning_rate(config: OptimizerConfig, step: int, num_steps: int, maximum: float | None = None) -> float:
    """Rate at a 0-based step: linear warm-up, then a cosine down to `min_learning_rate_ratio` of the maximum.

    `maximum` is by default the configuration's `learning_rate`.
    """
    highest = config.learning_rate if maximum is None else maximum
    warmup_steps = max(1, round(config.warmup_fraction * num_steps))
    if step < warmup_steps:
        return highest * (step + 1) / warmup_steps
    progress = (step - warmup_steps) / max(1, num_steps - 1 - warmup_steps)
    floor = config.min_learning_rate_ratio
    return highest * (floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * progress)))
