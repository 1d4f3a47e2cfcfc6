"""Some of the pre-activations of some tokens, with gradients that never form those of all others.

z = W_enc (x - b_dec) + b_enc is held once without a graph, [N, C]: at 1,024 tokens and C = 131,072 it is 0.5 GB. A loss reads
M of its entries, whose gradients are sums of gathered rows:

    z_k = W_k x + b_k,   k in I        dL/dx = sum_k g_k W_k,   dL/dW_k = sum over tokens of g_k x,   dL/db_k = sum of g_k
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor
from torch.nn import functional as F

from cocomix.sae.model import SparseAutoencoder

# Shapes: N tokens, D width of the teacher, C latents, M chosen latents of all tokens together.


@dataclass(frozen=True)
class Choice:
    """Latents of N tokens, token after token."""

    indices: Int64[Tensor, " M"]
    offsets: Int64[Tensor, " N"]
    """Where each token's latents begin."""

    @property
    def tokens(self) -> Int64[Tensor, " M"]:
        """The token of each latent."""
        ends = torch.cat([self.offsets[1:], self.offsets.new_full((1,), len(self.indices))])
        tokens = torch.arange(len(self.offsets), device=ends.device)
        return tokens.repeat_interleave(ends - self.offsets, output_size=len(self.indices))

    @classmethod
    def of(cls, tokens: Int64[Tensor, " M"], indices: Int64[Tensor, " M"], num_tokens: int) -> Choice:
        """From the token of each latent, ascending."""
        return cls(indices, torch.searchsorted(tokens, torch.arange(num_tokens, device=tokens.device)))


class _Chosen(torch.autograd.Function):
    """Entries of the pre-activations, as a function of what they were made from."""

    @staticmethod
    def forward(ctx: Any, z: Tensor, choice: Choice, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        ctx.choice = choice
        ctx.save_for_backward(x, weight, bias)
        return z[choice.tokens, choice.indices]

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, bias = ctx.saved_tensors
        choice, (grad,) = ctx.choice, grads
        leaf = weight.detach().requires_grad_(True)
        with torch.enable_grad():
            grad_x = F.embedding_bag(choice.indices, leaf, choice.offsets, per_sample_weights=grad, mode="sum")
        # The same rows, weighted alike: what x contributes to each is the derivative of that sum.
        (grad_weight,) = torch.autograd.grad(grad_x, leaf, x)
        grad_bias = torch.zeros_like(bias).index_add_(0, choice.indices, grad)
        return None, None, grad_x.detach(), grad_weight, grad_bias


def chosen_pre_activations(
    z: Float[Tensor, "N C"],
    choice: Choice,
    x: Float[Tensor, "N D"],
    weight: Float[Tensor, "C D"],
    bias: Float[Tensor, " C"],
) -> Float[Tensor, " M"]:
    """The chosen pre-activations, with gradients for x, weight and bias.

    Args:
        z: all of them, x @ weight.T + bias, without a graph.
        choice: latents of each token, none of them twice.
        x: what the encoder reads.
        weight: of the encoder.
        bias: of the encoder.
    """
    chosen: Tensor = _Chosen.apply(z, choice, x, weight, bias)  # type: ignore[no-untyped-call]
    return chosen


class Encoded:
    """Pre-activations of some tokens.

    Args:
        sae: the dictionary.
        x: what its encoder reads, [N, D].
    """

    def __init__(self, sae: SparseAutoencoder, x: Float[Tensor, "N D"]) -> None:
        self.sae, self.x = sae, x
        with torch.no_grad():
            self.z = F.linear(x, sae.encoder_weight, sae.encoder_bias).to(x.dtype)  # (N, C)

    def values(self, choice: Choice) -> Float[Tensor, " M"]:
        """The chosen pre-activations, with gradients."""
        return chosen_pre_activations(self.z, choice, self.x, self.sae.encoder_weight, self.sae.encoder_bias)

    def best(self, num_latents: int, among: Bool[Tensor, " C"] | None = None) -> Choice:
        """The latents with the largest pre-activations of each token: of all latents, or among some."""
        z = self.z if among is None else self.z.masked_fill(~among, -torch.inf)
        indices = z.topk(num_latents, dim=-1).indices
        return Choice(indices.flatten(), torch.arange(0, indices.numel(), num_latents, device=indices.device))
