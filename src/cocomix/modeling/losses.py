"""The next-token loss, token by token."""

from __future__ import annotations

from jaxtyping import Float, Int64
from torch import Tensor
from torch.nn import functional as F


def next_token_losses(logits: Float[Tensor, "B T V"], input_ids: Int64[Tensor, "B T"]) -> Float[Tensor, "B T-1"]:
    """-log p(x_{t+1} | x_{<=t}), in nats, for all tokens but the first of each window."""
    V = logits.shape[-1]
    losses = F.cross_entropy(logits[:, :-1].reshape(-1, V), input_ids[:, 1:].reshape(-1), reduction="none")
    return losses.view(len(input_ids), -1)
