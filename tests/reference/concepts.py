"""Concept head, compression and mixing as the method's text states them, with dense [N, C] tensors."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F


def concept_head(
    x: Tensor, weight: Tensor, bias: Tensor, num_active: int, labels: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Dense z with all but the largest `num_active` entries zeroed, [N, C], and the loss of each row, [N]."""
    z = x @ weight.T + bias
    losses = torch.zeros(len(x), dtype=x.dtype)
    if labels is not None:
        # The paper's form: one cross-entropy for each label, averaged.
        losses = torch.stack([F.cross_entropy(z, labels[:, k], reduction="none") for k in range(labels.shape[1])]).mean(
            0
        )
    threshold = z.topk(num_active, dim=-1).indices
    mask = torch.zeros_like(z).scatter(-1, threshold, 1.0)
    return z * mask, losses


def compress(active: Tensor, weight: Tensor) -> Tensor:
    """W_compress @ TopK(z) as a dense product; `weight` is [C, D]."""
    return active @ weight


def interleave(hidden: Tensor, vectors: Tensor) -> Tensor:
    """h_1, c_1, h_2, c_2, ... one position after another."""
    positions = []
    for t in range(hidden.shape[1]):
        positions += [hidden[:, t], vectors[:, t]]
    return torch.stack(positions, dim=1)
