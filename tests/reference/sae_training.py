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


def written_out_batch_top_k(z: Tensor, k: int) -> Tensor:
    """Activations [N, C] of a batch: the k N largest of all, after a ReLU (Bussmann et al., arXiv 2412.06410, section 3)."""
    places = sorted(((float(value), n, i) for n, row in enumerate(z) for i, value in enumerate(row)), reverse=True)
    c = torch.zeros_like(z)
    for _, n, i in places[: k * len(z)]:
        c[n, i] = max(z[n, i], z.new_zeros(()))
    return c


def written_out_jump_gradients(
    z: Tensor, thresholds: Tensor, by_activation: Tensor, by_number: Tensor, bandwidth: float
) -> tuple[Tensor, Tensor]:
    """Gradients of JumpReLU's pre-activations and thresholds (Rajamanoharan et al., arXiv 2407.14435, section 4).

    Args:
        z: pre-activations [N, C].
        thresholds: [C].
        by_activation: derivative of the loss by each activation, [N, C].
        by_number: derivative of the loss by the number of active latents of all tokens.
        bandwidth: epsilon.
    """
    by_z, by_threshold = torch.zeros_like(z), torch.zeros_like(thresholds)
    for n, row in enumerate(z):
        for i, value in enumerate(row):
            if value > thresholds[i]:
                by_z[n, i] = by_activation[n, i]
            if abs(value - thresholds[i]) / bandwidth < 0.5:
                by_threshold[i] -= (thresholds[i] / bandwidth) * by_activation[n, i] + by_number / bandwidth
    return by_z, by_threshold
