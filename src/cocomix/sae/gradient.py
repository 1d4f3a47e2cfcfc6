"""Pre-activations whose gradient costs what the chosen latents cost: a loss that reads K of a token's C latents has no other.

    z_k = W_k x + b_k,   k in I        dL/dx = sum_k g_k W_k,   dL/dW_k = sum over tokens of g_k x,   dL/db_k = sum of g_k

Both sums are gathered rows, never products with an [N, C] tensor that is nearly all zeros.

Shapes: N tokens, D width, C latents, K chosen latents.
"""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float, Int64
from torch import Tensor
from torch.nn import functional as F


class _Chosen(torch.autograd.Function):
    """Columns of the pre-activations, as a function of what they were made from."""

    @staticmethod
    def forward(ctx: Any, z: Tensor, indices: Tensor, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        ctx.save_for_backward(indices, x, weight, bias)
        return z.gather(-1, indices)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        indices, x, weight, bias = ctx.saved_tensors
        (grad,) = grads
        leaf = weight.detach().requires_grad_(True)
        with torch.enable_grad():
            grad_x = F.embedding_bag(indices, leaf, per_sample_weights=grad, mode="sum")
        # The same rows, weighted alike: what x contributes to each is the derivative of that sum.
        (grad_weight,) = torch.autograd.grad(grad_x, leaf, x)
        grad_bias = torch.zeros_like(bias).index_add_(0, indices.flatten(), grad.flatten())
        return None, None, grad_x.detach(), grad_weight, grad_bias


def chosen_pre_activations(
    z: Float[Tensor, "N C"],
    indices: Int64[Tensor, "N K"],
    x: Float[Tensor, "N D"],
    weight: Float[Tensor, "C D"],
    bias: Float[Tensor, " C"],
) -> Float[Tensor, "N K"]:
    """The pre-activations at `indices`, with gradients for x, weight and bias.

    Args:
        z: all of them, x @ weight.T + bias, without a graph.
        indices: latents of each token, none of them twice.
        x: what the encoder reads.
        weight: of the encoder.
        bias: of the encoder.
    """
    chosen: Tensor = _Chosen.apply(z, indices, x, weight, bias)  # type: ignore[no-untyped-call]
    return chosen
