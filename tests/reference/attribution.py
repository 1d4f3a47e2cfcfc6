"""Attribution by finite differences of the teacher's loss, one latent at a time."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from cocomix.modeling.teacher import Teacher
from cocomix.sae.model import Latents, SparseAutoencoder


def finite_difference_attribution(
    teacher: Teacher, sae: SparseAutoencoder, input_ids: Tensor, *, point: str, loss: str, epsilon: float = 1e-5
) -> Tensor:
    """c_i * d(loss)/d(c_i) by central differences, [B, T, K]; a change of c_i moves h_t along std * W_dec[i]."""
    h = teacher.residual(input_ids)
    latents = sae.encode(h)
    result = torch.zeros_like(latents.values)
    B, T, K = latents.values.shape
    for b in range(B):
        for t in range(T):
            start = h[b].clone()
            if point == "reconstruction":
                start[t] = _decode_one(sae, latents, b, t)
            for k in range(K):
                step = epsilon * latents.std[b, t] * sae.decoder_weight[latents.indices[b, t, k]]
                losses = []
                for sign in (1, -1):
                    moved = start.clone()
                    moved[t] += sign * step
                    losses.append(_loss(teacher, moved, input_ids[b], t, loss))
                result[b, t, k] = latents.values[b, t, k] * (losses[0] - losses[1]) / (2 * epsilon)
    return result


def _decode_one(sae: SparseAutoencoder, latents: Latents, b: int, t: int) -> Tensor:
    total = sae.decoder_bias.clone()
    for index, value in zip(latents.indices[b, t], latents.values[b, t], strict=True):
        total = total + value * sae.decoder_weight[index]
    return total * latents.std[b, t] + latents.mean[b, t]


@torch.no_grad()
def _loss(teacher: Teacher, h: Tensor, ids: Tensor, t: int, loss: str) -> Tensor:
    """Loss of token t + 1 alone, or of all tokens."""
    losses = F.cross_entropy(teacher.logits(h.unsqueeze(0))[0, :-1], ids[1:], reduction="none")
    if loss == "all_future":
        return losses.sum()
    return losses[t] if t < len(losses) else torch.zeros((), dtype=losses.dtype)
