"""How good a dictionary is, on held-out text."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from cocomix.concepts.sae import SparseAutoencoder
from cocomix.concepts.teacher import Teacher
from cocomix.data.token_dataset import TokenDataset
from cocomix.modeling.losses import next_token_losses

# Shapes: B batch, T tokens, D width of the teacher.


@dataclass(frozen=True)
class SaeQuality:
    """Quality of a dictionary on a number of tokens."""

    fvu: float
    """Fraction of the residual stream's variance that the reconstruction leaves unexplained."""
    l0: float
    """Mean number of latents with a positive activation."""
    num_dead: int
    """Latents that were active at no token."""
    loss: float
    """The teacher's next-token loss, nats."""
    spliced_loss: float
    """The same with the reconstruction in place of the residual stream."""
    mean_ablated_loss: float
    """The same with the mean residual stream at every token."""
    num_tokens: int
    """Tokens measured on."""
    loss_recovered: float
    """1 - (spliced - loss) / (mean ablated - loss)."""


@torch.no_grad()
def sae_quality(
    teacher: Teacher, sae: SparseAutoencoder, dataset: TokenDataset, *, max_windows: int | None = None
) -> SaeQuality:
    """Measure a dictionary on evenly spaced windows of a split."""
    D = sae.config.hidden_size
    total, num_windows, num_tokens = torch.zeros(D, dtype=torch.float64), 0, 0
    for input_ids in dataset.batches(32, max_windows):
        h = teacher.residual(input_ids)
        num_windows += len(h)
        total += h.double().sum((0, 1))
        num_tokens += h.shape[0] * h.shape[1]
    mean = (total / num_tokens).float()

    sums = torch.zeros(6, dtype=torch.float64)
    activity = torch.zeros(sae.config.num_latents, dtype=torch.long)
    for input_ids in dataset.batches(32, max_windows, description="measuring the autoencoder"):
        h = teacher.residual(input_ids)
        latents = sae.encode(h)
        h_hat = sae.decode(latents)
        active = latents.values > 0
        activity += torch.bincount(latents.indices[active], minlength=len(activity))
        sums += torch.stack(
            [
                (h - h_hat).double().pow(2).sum(),
                (h - mean).double().pow(2).sum(),
                active.double().sum(),
                _loss_sum(teacher, h, input_ids),
                _loss_sum(teacher, h_hat, input_ids),
                _loss_sum(teacher, mean.expand_as(h), input_ids),
            ]
        )
    num_targets = num_tokens - num_windows
    loss, spliced, ablated = (float(value) / num_targets for value in sums[3:])
    return SaeQuality(
        fvu=float(sums[0] / sums[1]),
        l0=float(sums[2]) / num_tokens,
        num_dead=int((activity == 0).sum()),
        loss=loss,
        spliced_loss=spliced,
        mean_ablated_loss=ablated,
        num_tokens=num_tokens,
        loss_recovered=1 - (spliced - loss) / (ablated - loss),
    )


def _loss_sum(teacher: Teacher, residual: Tensor, input_ids: Tensor) -> Tensor:
    return next_token_losses(teacher.logits(residual), input_ids).double().sum()
