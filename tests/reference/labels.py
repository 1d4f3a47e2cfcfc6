"""Labels one position at a time from dense scores, and the dense scores."""

from __future__ import annotations

import torch
from torch import Tensor

from cocomix.sae.model import SparseAutoencoder

IGNORED = -100


def pre_activation_attribution(sae: SparseAutoencoder, h: Tensor, gradient: Tensor) -> Tensor:
    """z_i * d(loss)/dc_i of every latent, [B, T, C], as two dense products."""
    mean, std, epsilon = torch.zeros(()), torch.ones(()), 0.0
    if sae.config.normalize_input == "layer_norm":
        mean, std, epsilon = h.mean(-1, True), h.std(-1, keepdim=True), 1e-5
    x = (h - mean) / (std + epsilon) - (sae.decoder_bias if sae.config.subtract_decoder_bias else 0.0)
    z = x @ sae.encoder_weight.T + sae.encoder_bias
    return z * std * (gradient @ sae.decoder_weight.T)


def top_labels(dense: Tensor, sign: str, num_labels: int) -> Tensor:
    """The best of [B, T, C] attributions, best first; only a positive score makes a label."""
    B, T, _ = dense.shape
    labels = torch.full((B, T, num_labels), IGNORED)
    for b in range(B):
        for t in range(T - 1):  # the last position has no next token
            a = dense[b, t].tolist()
            score = {"raises_loss": lambda x: x, "lowers_loss": lambda x: -x, "magnitude": abs}[sign]
            ranked = sorted((i for i in range(len(a)) if score(a[i]) > 0), key=lambda i: -score(a[i]))[:num_labels]
            labels[b, t, : len(ranked)] = torch.tensor(ranked)
    return labels
