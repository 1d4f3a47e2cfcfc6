"""A linear head, its largest logits and its cross entropy, at the cost of the matrix products.

The plain way keeps logits and their log-softmax, each [N, C], from the forward to the backward. Here one autograd function
goes through the rows in chunks: it computes a chunk's logits, takes the largest, turns the chunk into probabilities in
place, and multiplies the gradients of the loss out at once, for an upstream gradient of one. The backward scales them and
adds the K rows that the gradients of the largest logits touch. So there are three products of [N, C] in all, none is
computed twice, and one buffer of a chunk is all that ever exists of size [., C].

Concept head and vocabulary loss are both this. `torch.nn.functional.linear_cross_entropy` does the second likewise, from
torch 2.13 on, but returns and adds up the loss in the products' dtype, and FLOP counters and plans do not see inside.

In a dtype below float32 the products run in it; logits, sums and gradients of weights stay in float32.

Shapes: N rows, D width, C classes (concepts, tokens), K largest, A labels a row; n rows of a chunk.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int64
from torch import Tensor
from torch.nn import functional as F

from cocomix.base.errors import CocomixError

#: Megabytes (of 2**20 bytes) of a chunk's logits. At 50,257 classes 16 of them lose time to smaller products on a
#: CPU, and 128 gain none (docs/log.md).
LOGITS_MEGABYTES = 64

_MEGABYTE = 2**20

#: Of a chunk's memory, one in so many bytes is enough for the K rows a token that are gathered.
_SHARE_OF_ROWS = 8

#: Neighbouring logits that are compared as one before the largest are looked for.
_GROUP = 64


@dataclass(frozen=True)
class _Head:
    """What a pass over the rows reads."""

    x: Tensor
    weight: Tensor
    bias: Tensor | None
    labels: Tensor | None
    row_weights: Tensor | None
    num_largest: int
    chunk_bytes: int

    @property
    def dtype(self) -> torch.dtype:
        """Of logits and sums."""
        return torch.promote_types(self.x.dtype, torch.float32)

    def chunks(self) -> Iterator[tuple[slice, Tensor]]:
        """Rows, and their logits [n, C] in a buffer that the next rows use again."""
        N, C = len(self.x), len(self.weight)
        most = max(1, self.chunk_bytes // (C * self.dtype.itemsize))
        # As few chunks as fit, of equal size: a small last one would multiply slowly.
        num_chunks = max(1, -(-N // most))
        size = max(1, -(-N // num_chunks))
        buffer = self.x.new_empty(size, C, dtype=self.dtype)
        for start in range(0, N, size):
            rows = slice(start, min(start + size, N))
            yield rows, self._logits(self.x[rows], buffer[: rows.stop - start])

    def _logits(self, x: Tensor, out: Tensor) -> Tensor:
        if x.dtype != out.dtype:
            out.copy_(x @ self.weight.t())
        elif self.bias is not None and self.bias.dtype == out.dtype:
            return torch.addmm(self.bias, x, self.weight.t(), out=out)
        else:
            torch.mm(x, self.weight.t(), out=out)
        return out if self.bias is None else out.add_(self.bias)


class _Gradients:
    """Gradients of the summed loss, as far as they are wanted; those of weights are added up in the logits' dtype."""

    def __init__(self, head: _Head, wanted: tuple[bool, ...]) -> None:
        x, weight = head.x, head.weight
        self.x = torch.zeros_like(x) if wanted[0] else None
        self.weight = torch.zeros_like(weight, dtype=head.dtype) if wanted[1] else None
        self.bias = x.new_zeros(len(weight), dtype=head.dtype) if wanted[2] else None

    def add(self, head: _Head, rows: slice, grad_z: Tensor, row_weights: Tensor) -> None:
        """Those of some rows, from the gradients [n, C] of their logits but for the rows' weights."""
        if self.bias is not None:
            torch.addmv(self.bias, grad_z.t(), row_weights, out=self.bias)
        x, grad_z, row_weights = head.x[rows], grad_z.to(head.x.dtype), row_weights.unsqueeze(-1).to(head.x.dtype)
        if self.x is not None:
            torch.mm(grad_z, head.weight, out=self.x[rows]).mul_(row_weights)
        if self.weight is not None and self.weight.dtype == x.dtype:
            torch.addmm(self.weight, grad_z.t(), x * row_weights, out=self.weight)  # a form that torch's counter sees
        elif self.weight is not None:
            self.weight.add_(grad_z.t() @ (x * row_weights))

    def scale(self, factor: Tensor) -> None:
        for gradient in (self.x, self.weight, self.bias):
            if gradient is not None:
                gradient.mul_(factor)

    def add_largest(self, head: _Head, indices: Tensor, grad_values: Tensor) -> None:
        """Those that come through the K largest logits of each row: K rows of the weight, instead of a product of [N, C]."""
        if self.x is not None:
            factors = grad_values.to(head.weight.dtype)
            self.x.add_(F.embedding_bag(indices, head.weight, per_sample_weights=factors, mode="sum"))
        if self.bias is not None:
            self.bias.index_add_(0, indices.flatten(), grad_values.flatten())
        if self.weight is None:
            return
        row_bytes = indices.shape[1] * head.x.shape[1] * head.dtype.itemsize
        size = max(1, head.chunk_bytes // (_SHARE_OF_ROWS * row_bytes))
        for some, factors, x in zip(
            indices.split(size), grad_values.split(size), head.x.to(head.dtype).split(size), strict=True
        ):
            self.weight.index_add_(0, some.flatten(), (factors.unsqueeze(-1) * x.unsqueeze(1)).flatten(0, 1))

    def returned(self, head: _Head) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        weight = None if self.weight is None else self.weight.to(head.weight.dtype)
        bias = None if self.bias is None or head.bias is None else self.bias.to(head.bias.dtype)
        return self.x, weight, bias


def _largest(z: Tensor, num_largest: int) -> tuple[Tensor, Tensor]:
    """Values and indices of each row's largest logits, largest first.

    Looked for in the groups with the largest maxima: whatever lies in another group is below as many logits as are wanted.
    """
    n, C = z.shape
    if C % _GROUP or 2 * num_largest * _GROUP > C:
        values, indices = z.topk(num_largest, dim=-1)
        return values, indices
    groups = z.view(n, C // _GROUP, _GROUP)
    chosen = groups.amax(-1).topk(num_largest, dim=-1, sorted=False).indices  # (n, K)
    candidates = groups.gather(1, chosen.unsqueeze(-1).expand(-1, -1, _GROUP)).flatten(1)
    values, places = candidates.topk(num_largest, dim=-1)
    return values, chosen.gather(-1, places // _GROUP) * _GROUP + places % _GROUP


def _sum_losses_(z: Tensor, top: tuple[Tensor, Tensor], labels: Tensor, row_weights: Tensor) -> Tensor:
    """The rows' weighted losses, summed; leaves in `z` the gradients of the losses.

    mean_k CE(z, I_k) = logsumexp(z) - mean_k z[I_k], and the log-sum-exp is z_j - log p_j of any j, the largest the safest.
    """
    label_logits = z.gather(-1, labels).mean(-1)
    torch.softmax(z, dim=-1, out=z)
    log_partition = (top[0] - z.gather(-1, top[1]).log()).squeeze(-1)
    z.scatter_add_(-1, labels, z.new_full((), -1 / labels.shape[-1]).expand_as(labels))
    return torch.dot(log_partition - label_logits, row_weights)


def _sweep(head: _Head, gradients: _Gradients | None) -> tuple[Tensor, Tensor, Tensor]:
    """Largest logits, their indices and the summed loss, whose gradients are added to those given."""
    N, K = len(head.x), head.num_largest
    values = head.x.new_empty(N, K, dtype=head.dtype)
    indices = torch.empty(N, K, dtype=torch.long, device=head.x.device)
    loss = head.x.new_zeros((), dtype=head.dtype)
    for rows, z in head.chunks():
        if K:
            values[rows], indices[rows] = _largest(z, K)
        if head.labels is None or head.row_weights is None:
            continue
        top = (values[rows, :1], indices[rows, :1]) if K else z.max(-1, keepdim=True)
        loss += _sum_losses_(z, top, head.labels[rows], head.row_weights[rows])
        if gradients is not None:
            gradients.add(head, rows, z, head.row_weights[rows])
    return values, indices, loss


class _LinearHead(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        labels: Tensor | None,
        row_weights: Tensor | None,
        num_largest: int,
        chunk_bytes: int,
        is_recording: bool,
    ) -> tuple[Tensor, Tensor, Tensor]:
        head = _Head(x, weight, bias, labels, row_weights, num_largest, chunk_bytes)
        wanted = tuple(is_recording and wants for wants in ctx.needs_input_grad[:3])
        gradients = _Gradients(head, wanted) if labels is not None and any(wanted) else None
        values, indices, loss = _sweep(head, gradients)
        ctx.save_for_backward(x, weight, bias, labels, row_weights, indices)
        ctx.sizes, ctx.wanted = (num_largest, chunk_bytes), wanted
        # To be scaled in place by the first backward, and handed on as they are.
        ctx.ready = [] if gradients is None else [gradients]
        ctx.mark_non_differentiable(indices)
        ctx.set_materialize_grads(False)
        return values, indices, loss

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        # Gradients are recorded here with `create_graph` only. torch's `once_differentiable` would take them for constants
        # where the upstream gradient is one, as a loss's own is, and second derivatives would be silently wrong.
        if torch.is_grad_enabled():
            raise CocomixError(
                "concept head and chunked vocabulary loss have no second derivatives; take gradients without create_graph"
            )
        grad_values, _, grad_loss = grads
        *tensors, indices = ctx.saved_tensors
        head = _Head(*tensors, *ctx.sizes)
        if grad_loss is not None and ctx.ready:
            gradients = ctx.ready.pop()
        else:
            gradients = _Gradients(head, ctx.wanted)
            if grad_loss is not None and head.labels is not None:  # again, of a graph that was kept
                _sweep(head, gradients)
        if grad_loss is not None:
            gradients.scale(grad_loss)
        if grad_values is not None and grad_values.shape[1]:
            gradients.add_largest(head, indices, grad_values)
        return (*gradients.returned(head), None, None, None, None, None)


# Compiled code calls it as it is: the chunks are fused by hand, and a trace would unroll them and save nothing.
_apply = torch.compiler.disable(_LinearHead.apply, reason="a linear head is fused by hand")


def linear_head(
    x: Float[Tensor, "N D"],
    weight: Float[Tensor, "C D"],
    bias: Float[Tensor, " C"] | None = None,
    *,
    labels: Int64[Tensor, "N A"] | None = None,
    row_weights: Float[Tensor, " N"] | None = None,
    num_largest: int = 0,
    logits_megabytes: int = LOGITS_MEGABYTES,
) -> tuple[Float[Tensor, "N K"], Int64[Tensor, "N K"], Float[Tensor, ""]]:
    """The largest logits of a linear head, and its summed cross entropy.

    z = weight @ x + bias;  loss = sum_n w_n (logsumexp(z_n) - mean_a z_n[labels_a])

    Under autocast the products run in its dtype.

    Args:
        x: what the head reads.
        weight: of the head.
        bias: of the head.
        labels: classes of each row, each in [0, C); None: no loss.
        row_weights: w, factors of the rows in the sum, zero where labels mean nothing; constants. Default: ones.
        num_largest: K.
        logits_megabytes: of memory for a chunk's logits; one row at least.

    Returns:
        values and indices of the largest logits, largest first, and the loss (zero without labels), in float32 at least.
        Values and loss are differentiable, once.

    Raises:
        CocomixError: in the backward, if second derivatives are asked for (`create_graph`).
    """
    device = x.device.type
    if torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device):
        # Cast outside of the function, so that autograd casts gradients back; its backward runs without autocast.
        dtype = torch.get_autocast_dtype(device)
        with torch.autocast(device, enabled=False):
            return linear_head(
                x.to(dtype),
                weight.to(dtype),
                bias,
                labels=labels,
                row_weights=row_weights,
                num_largest=num_largest,
                logits_megabytes=logits_megabytes,
            )
    if labels is not None:
        dtype = torch.promote_types(x.dtype, torch.float32)
        row_weights = x.new_ones(len(x), dtype=dtype) if row_weights is None else row_weights.to(dtype)
    found: tuple[Tensor, Tensor, Tensor] = _apply(
        x,
        weight,
        bias,
        labels,
        row_weights,
        num_largest,
        logits_megabytes * _MEGABYTE,
        torch.is_grad_enabled(),
    )
    return found
