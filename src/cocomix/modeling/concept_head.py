"""Concept head and compression at the cost of their arithmetic.

The paper's formulation builds logits, a mask and a masked product, each [N, C], and keeps them for the backward. Here one
autograd function goes through the rows in chunks, keeps only the K_mix active indices and values and one log-sum-exp a
row, and recomputes a chunk's logits in the backward. Nothing of size [N, C] outlives a chunk.

Under autocast the products run in its dtype; logits, sums and gradients stay in float32.

Shapes: N = B * T rows, D width, C concepts, K active concepts, A labels a row.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from jaxtyping import Float, Int64
from torch import Tensor
from torch.nn import functional as F

#: Elements of one chunk's logits: 64 MB in float32.
CHUNK_ELEMENTS = 2**24


def _chunks(num_rows: int, num_concepts: int) -> Iterator[slice]:
    """Row ranges whose logits fit the budget."""
    size = max(1, CHUNK_ELEMENTS // num_concepts)
    for start in range(0, num_rows, size):
        yield slice(start, min(start + size, num_rows))


def _logits(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """[n, C], at least in float32, from operands in the dtype of the products."""
    if x.dtype == bias.dtype and x.dtype.itemsize >= 4:
        return torch.addmm(bias, x, weight.t())
    return (x @ weight.t()).float().add_(bias)


def strongest(z: Float[Tensor, "N C"], num_active: int, num_groups: int | None = None) -> tuple[Tensor, Tensor]:
    """The largest logits of each row and their concepts, largest first.

    Args:
        z: logits.
        num_active: how many.
        num_groups: choose among the best of each of so many groups only, concepts c, c + num_groups, ...: a pass over the
            logits and a sort of so many; None: among all.
    """
    if num_groups is None:
        values, indices = z.topk(num_active, dim=-1)
        return values, indices
    missing = -z.shape[-1] % num_groups
    if missing:
        z = F.pad(z, (0, missing), value=-torch.inf)
    grouped = z.unflatten(-1, (-1, num_groups))  # (n, members, groups)
    values, groups = grouped.amax(1).topk(num_active, dim=-1)
    # Which member it is matters in the chosen groups only: a maximum with its index costs several without.
    chosen = groups.unsqueeze(1).expand(-1, grouped.shape[1], -1)
    return values, grouped.gather(-1, chosen).argmax(1) * num_groups + groups


class _ConceptHead(torch.autograd.Function):
    """Top-k logits and per-row concept loss of a linear head."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor,
        bias: Tensor,
        labels: Tensor | None,
        num_active: int,
        num_groups: int | None,
    ) -> tuple[Tensor, Tensor, Tensor]:
        N = x.shape[0]
        dtype = torch.promote_types(x.dtype, torch.float32)
        values = x.new_empty(N, num_active, dtype=dtype)
        indices = torch.empty(N, num_active, dtype=torch.long, device=x.device)
        losses = x.new_zeros(N, dtype=dtype)
        log_partition = x.new_zeros(N, dtype=dtype)
        for part in _chunks(N, weight.shape[0]):
            z = _logits(x[part], weight, bias)  # (n, C)
            values[part], indices[part] = strongest(z, num_active, num_groups)
            if labels is not None:
                log_partition[part] = z.logsumexp(-1)
                # mean_k CE(z, I_k) = logsumexp(z) - mean_k z[I_k]
                losses[part] = log_partition[part] - z.gather(-1, labels[part]).mean(-1)
        ctx.save_for_backward(x, weight, bias, labels, indices, log_partition)
        ctx.mark_non_differentiable(indices)
        return values, indices, losses

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        grad_values, _, grad_losses = grads
        x, weight, bias, labels, indices, log_partition = ctx.saved_tensors
        grad_x = torch.empty_like(x)
        grad_weight = torch.zeros_like(weight, dtype=log_partition.dtype)
        grad_bias = torch.zeros_like(bias, dtype=log_partition.dtype)
        for part in _chunks(len(x), weight.shape[0]):
            if labels is None:
                grad_z = grad_values.new_zeros(len(x[part]), weight.shape[0])
            else:
                grad_loss = grad_losses[part].unsqueeze(-1)
                z = _logits(x[part], weight, bias)
                grad_z = (z - log_partition[part].unsqueeze(-1)).exp_().mul_(grad_loss)
                num_labels = labels.shape[-1]
                grad_z.scatter_add_(-1, labels[part], (-grad_loss / num_labels).expand(-1, num_labels))
            grad_z.scatter_add_(-1, indices[part], grad_values[part])
            grad_bias.add_(grad_z.sum(0))
            grad_z = grad_z.to(x.dtype)
            torch.mm(grad_z, weight, out=grad_x[part])
            if grad_weight.dtype == x.dtype:
                torch.addmm(grad_weight, grad_z.t(), x[part], out=grad_weight)  # a form that torch's counter sees
            else:
                grad_weight.add_(grad_z.t() @ x[part])
        return grad_x, grad_weight.to(weight.dtype), grad_bias.to(bias.dtype), None, None, None


def predict_concepts(
    x: Float[Tensor, "N D"],
    weight: Float[Tensor, "C D"],
    bias: Float[Tensor, " C"],
    num_active: int,
    labels: Int64[Tensor, "N A"] | None = None,
    num_groups: int | None = None,
) -> tuple[Float[Tensor, "N K"], Int64[Tensor, "N K"], Float[Tensor, " N"]]:
    """The `num_active` largest concept logits of each row, and each row's concept loss.

    z = weight @ x + bias;  loss = logsumexp(z) - mean_k z[labels_k]  (paper, equation 4)

    Args:
        x: normalised hidden states.
        weight: of the head.
        bias: of the head.
        num_active: K_mix.
        labels: concepts of each row, each in [0, C); None: losses are zero and not computed.
        num_groups: of `strongest`, at least `num_active`; None: the exact choice.

    Returns:
        values and indices of the active concepts, largest first (raw logits, which can be negative), and losses; values
        and losses are differentiable, and in float32 at least.
    """
    device = x.device.type
    if not (torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device)):
        values, indices, losses = _ConceptHead.apply(x, weight, bias, labels, num_active, num_groups)  # type: ignore[no-untyped-call]
        return values, indices, losses
    # Cast outside, so that the function and its backward, which runs without autocast, compute the same logits.
    dtype = torch.get_autocast_dtype(device)
    with torch.autocast(device, enabled=False):
        return predict_concepts(x.to(dtype), weight.to(dtype), bias, num_active, labels, num_groups)


def compress_concepts(
    values: Float[Tensor, "N K"], indices: Int64[Tensor, "N K"], weight: Float[Tensor, "C D"]
) -> Float[Tensor, "N D"]:
    """W_compress @ TopK(z), by gathering K rows of the transposed matrix instead of a dense [N, C] product.

    The sum has the weight's dtype, also under autocast: K rows cost nothing that a shorter format would save.
    """
    return F.embedding_bag(indices, weight, per_sample_weights=values.to(weight.dtype), mode="sum")
