"""The autoencoder's training loss with a loop over tokens and dense latents (Gao et al., arXiv 2406.04093, appendix A)."""

from __future__ import annotations

import torch
from torch import Tensor

from cocomix.sae.model import SparseAutoencoder


def written_out_losses(
    sae: SparseAutoencoder, h: Tensor, dead: Tensor, num_auxiliary_latents: int
) -> tuple[Tensor, Tensor]:
    """FVU of a batch, and the auxiliary loss of some dead latents."""
    x = torch.stack([(row - row.mean()) / (row.std() + 1e-5) for row in h])
    errors, rebuilt = [], []
    for row in x:
        z = sae.encoder_weight @ (row - sae.decoder_bias) + sae.encoder_bias
        c = torch.zeros_like(z)
        for latent in z.argsort(descending=True)[: sae.config.num_active_latents]:
            c[latent] = max(z[latent], z.new_zeros(()))
        error = row - (c @ sae.decoder_weight + sae.decoder_bias)
        errors.append(error)
        c = torch.zeros_like(z)
        candidates = [latent for latent in z.argsort(descending=True).tolist() if dead[latent]]
        for latent in candidates[:num_auxiliary_latents]:
            c[latent] = max(z[latent], z.new_zeros(()))
        rebuilt.append(c @ sae.decoder_weight)
    error = torch.stack(errors)
    fvu = (error**2).sum() / ((x - x.mean(0)) ** 2).sum()
    target = error.detach()
    auxiliary = ((target - torch.stack(rebuilt)) ** 2).sum() / ((target - target.mean(0)) ** 2).sum()
    return fvu, auxiliary
