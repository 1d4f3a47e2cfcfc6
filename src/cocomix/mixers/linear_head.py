"""A linear head, its largest logits and its cross entropy, at the cost of the matrix products.

The plain way keeps logits and their log-softmax, each [N, C], from forward to backward. Here one autograd function works
through the rows in chunks: it computes a chunk's logits, takes the largest, turns the chunk into probabilities in place, and
computes the gradients of the loss at once, for an upstream gradient of one. The backward scales them and adds the K rows
touched by the gradients of the largest logits. That makes three products of [N, C] in all, none computed twice, and only one
buffer of a chunk ever has C columns.

The concept head and the vocabulary loss both use this. From torch 2.13 on, `torch.nn.functional.linear_cross_entropy` does
the same for the vocabulary; docs/log.md says why it is not used.

Logits have a multiple of 64 columns, as kernels like them. Products below float32 run on operands that are cast here, with
the weight filled up likewise; logits, sums and gradients of weights stay in float32, never rounded to the products' dtype.

Shapes: N rows, D width, C classes (concepts, tokens), P columns of logits, W rows of the multiplied weight, K largest, A
labels per row; n rows of a chunk.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int64
from torch import Tensor
from torch.nn import functional as F

from cocomix.base.devices import rounded_dtype
from cocomix.base.errors import CocomixError

_MEGABYTE = 2**20

#: One in this many bytes of a chunk's memory is enough for the K rows per token that are gathered.
_SHARE_OF_ROWS = 8

#: Neighbouring logits per group; the largest logits are searched for in the groups with the largest maxima. Columns of logits
#: are filled up to a multiple of this many too.
_GROUP = 64


@dataclass(frozen=True)
class _Head:
    """The inputs of a pass over the rows."""

    x: Tensor
    weight: Tensor
    bias: Tensor | None
    labels: Tensor | None
    row_weights: Tensor | None
    num_largest: int
    chunk_bytes: int
    product_dtype: torch.dtype

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of logits and sums."""
        return torch.promote_types(self.product_dtype, torch.float32)

    @property
    def num_filled(self) -> int:
        """P: C, or the next multiple of 64."""
        return len(self.weight) + -len(self.weight) % _GROUP

    @property
    def num_weights(self) -> int:
        """W: P if the products are below float32, otherwise C: copying a weight to fill it up costs memory."""
        return len(self.weight) if self.product_dtype == self.dtype else self.num_filled

    def operands(self) -> tuple[Tensor, Tensor]:
        """Rows [N, D] and weight [W, D] in the products' dtype."""
        x, weight = self.x.to(self.product_dtype), self.weight
        if self.num_weights > len(weight):
            weight = weight.new_zeros(self.num_weights, weight.shape[1], dtype=self.product_dtype)
            weight[: len(self.weight)] = self.weight
        return x, weight.to(self.product_dtype)

    def chunks(self, x: Tensor, weight: Tensor) -> Iterator[tuple[slice, Tensor]]:
        """Rows and their logits [n, P], in a buffer that the next chunk reuses; -inf where there is no class."""
        N, C, P = len(x), len(self.weight), self.num_filled
        max_rows = max(1, self.chunk_bytes // (P * self.dtype.itemsize))
        # As few chunks as fit, of equal size: a small last chunk would multiply slowly.
        num_chunks = max(1, -(-N // max_rows))
        size = max(1, -(-N // num_chunks))
        buffer = x.new_empty(size, P, dtype=self.dtype)
        for start in range(0, N, size):
            rows = slice(start, min(start + size, N))
            z = buffer[: rows.stop - start]
            products = z[:, : len(weight)]
            if self.bias is not None and self.bias.dtype == x.dtype == z.dtype:
                torch.addmm(self.bias, x[rows], weight.t(), out=products)
            else:
                _multiply(x[rows], weight.t(), products)
                if self.bias is not None:
                    z[:, :C] += self.bias
            z[:, C:] = -torch.inf
            yield rows, z


def _multiply(a: Tensor, b: Tensor, out: Tensor, *, adds: bool = False) -> None:
    """Write a @ b to `out`, or add it. On a CPU a product below float32 is rounded to its dtype once, elsewhere not."""
    if a.dtype == out.dtype:
        torch.addmm(out, a, b, out=out) if adds else torch.mm(a, b, out=out)  # torch's counter counts these forms
    elif a.is_cuda:
        dtype = out.dtype
        torch.addmm(out, a, b, out_dtype=dtype, out=out) if adds else torch.mm(a, b, out_dtype=dtype, out=out)
    elif adds:
        out.add_(a @ b)
    else:
        out.copy_(a @ b)


class _Gradients:
    """The wanted gradients of the summed loss: the weight's [W, D] and the bias's accumulate in the logits' dtype."""

    def __init__(self, head: _Head, wanted: tuple[bool, ...]) -> None:
        x, weight = head.x, head.weight
        self.x = torch.zeros_like(x) if wanted[0] else None
        shape = (head.num_weights, weight.shape[1])
        self.weight = weight.new_zeros(shape, dtype=head.dtype) if wanted[1] else None
        self.bias = x.new_zeros(len(weight), dtype=head.dtype) if wanted[2] else None

    def add(self, x: Tensor, weight: Tensor, rows: slice, grad_z: Tensor, row_weights: Tensor) -> None:
        """Add the gradients of some rows, from the gradients [n, P] of their logits before row weights are applied.

        Args:
            x: operand of all rows; the rows come in order.
            weight: the other operand.
            rows: rows of the chunk.
            grad_z: gradients of the rows' losses.
            row_weights: their weights.
        """
        if self.bias is not None:
            torch.addmv(self.bias, grad_z[:, : len(self.bias)].t(), row_weights, out=self.bias)
        grad_z, row_weights = grad_z[:, : len(weight)].to(x.dtype), row_weights.unsqueeze(-1).to(x.dtype)
        if self.x is not None:
            _multiply(grad_z, weight, self.x[rows])
            self.x[rows].mul_(row_weights)
        if self.weight is not None:
            # Zeros are added to unless the product is a tensor of its own: in one dtype, adding is as fast.
            adds = rows.start > 0 or x.dtype == self.weight.dtype
            _multiply(grad_z.t(), x[rows] * row_weights, self.weight, adds=adds)

    def scale(self, factor: Tensor) -> None:
        for gradient in (self.x, self.weight, self.bias):
            if gradient is not None:
                gradient.mul_(factor)

    def add_largest(self, head: _Head, indices: Tensor, grad_values: Tensor) -> None:
        """Add the gradients through each row's K largest logits: K rows of the weight instead of a product of [N, C]."""
        if self.x is not None:
            factors = grad_values.to(head.weight.dtype)
            self.x.add_(F.embedding_bag(indices, head.weight, per_sample_weights=factors, mode="sum"))
        if self.bias is not None:
            self.bias.index_add_(0, indices.flatten(), grad_values.flatten())
        if self.weight is None:
            return
        row_bytes = indices.shape[1] * head.x.shape[1] * head.dtype.itemsize
        size = max(1, head.chunk_bytes // (_SHARE_OF_ROWS * row_bytes))
        for rows, factors, x in zip(
            indices.split(size), grad_values.split(size), head.x.to(head.dtype).split(size), strict=True
        ):
            self.weight.index_add_(0, rows.flatten(), (factors.unsqueeze(-1) * x.unsqueeze(1)).flatten(0, 1))

    def returned(self, head: _Head) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        weight = None if self.weight is None else self.weight[: len(head.weight)].to(head.weight.dtype)
        bias = None if self.bias is None or head.bias is None else self.bias.to(head.bias.dtype)
        return self.x, weight, bias


def _largest(z: Tensor, num_largest: int) -> tuple[Tensor, Tensor]:
    """Values and indices of each row's `num_largest` largest logits, largest first.

    Only the `num_largest` groups with the largest maxima are searched: every logit of another group is below these maxima.
    """
    n, P = z.shape
    if 2 * num_largest * _GROUP > P:
        values, indices = z.topk(num_largest, dim=-1)
        return values, indices
    groups = z.view(n, P // _GROUP, _GROUP)
    chosen = groups.amax(-1).topk(num_largest, dim=-1, sorted=False).indices  # (n, K)
    candidates = groups.gather(1, chosen.unsqueeze(-1).expand(-1, -1, _GROUP)).flatten(1)
    values, places = candidates.topk(num_largest, dim=-1)
    return values, chosen.gather(-1, places // _GROUP) * _GROUP + places % _GROUP


def default_megabytes(device: str, product_dtype: torch.dtype) -> int:
    """Megabytes (2**20 bytes) of a chunk's logits on a type of device.

    Every chunk reads and writes the whole gradient of the weight: the faster the products, the larger the chunks. On a CPU
    in float32, with 50,257 classes, 16 MB lose time to smaller products and 128 MB gain none.
    """
    if device != "cpu":
        return 512
    return 128 if product_dtype.itemsize < torch.float32.itemsize else 64


def _sum_losses_(z: Tensor, largest: Tensor, place: Tensor | None, labels: Tensor, row_weights: Tensor) -> Tensor:
    """The sum of the losses of the rows with weight 1; overwrites `z` with the gradients of all rows' losses.

    mean_k CE(z, I_k) = logsumexp(z) - mean_k z[I_k], and logsumexp(z) = z_j - log p_j for any j; the largest is the safest.
    The means are over the labels that a row has.
    """
    is_label = labels >= 0
    num_labels = is_label.sum(-1, keepdim=True).clamp(min=1)
    labels = labels.clamp(min=0)
    label_logits = z.gather(-1, labels).masked_fill(~is_label, 0).sum(-1) / num_labels.squeeze(-1)
    torch.softmax(z, dim=-1, out=z)
    log_partition = largest - (z.amax(-1) if place is None else z.gather(-1, place).squeeze(-1)).log()
    z.scatter_add_(-1, labels, -is_label.to(z.dtype) / num_labels)
    return torch.dot(log_partition - label_logits, row_weights)


def _sweep(head: _Head, gradients: _Gradients | None) -> tuple[Tensor, Tensor, Tensor]:
    """The largest logits, their indices and the summed loss; adds the loss's gradients to `gradients`."""
    N, K = len(head.x), head.num_largest
    values = head.x.new_empty(N, K, dtype=head.dtype)
    indices = torch.empty(N, K, dtype=torch.long, device=head.x.device)
    loss = head.x.new_zeros((), dtype=head.dtype)
    x, weight = head.operands()
    for rows, z in head.chunks(x, weight):
        if K:
            values[rows], indices[rows] = _largest(z, K)
        if head.labels is None or head.row_weights is None:
            continue
        # Twice the largest value costs less than once its place.
        largest, place = (values[rows, 0], indices[rows, :1]) if K else (z.amax(-1), None)
        loss += _sum_losses_(z, largest, place, head.labels[rows], head.row_weights[rows])
        if gradients is not None:
            gradients.add(x, weight, rows, z, head.row_weights[rows])
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
        product_dtype: torch.dtype,
        is_recording: bool,
    ) -> tuple[Tensor, Tensor, Tensor]:
        head = _Head(x, weight, bias, labels, row_weights, num_largest, chunk_bytes, product_dtype)
        wanted = tuple(is_recording and wants for wants in ctx.needs_input_grad[:3])
        gradients = _Gradients(head, wanted) if labels is not None and any(wanted) else None
        values, indices, loss = _sweep(head, gradients)
        ctx.save_for_backward(x, weight, bias, labels, row_weights, indices)
        ctx.settings, ctx.wanted = (num_largest, chunk_bytes, product_dtype), wanted
        # The first backward scales these in place and returns them.
        ctx.ready = [] if gradients is None else [gradients]
        ctx.mark_non_differentiable(indices)
        ctx.set_materialize_grads(False)
        return values, indices, loss

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        # Gradients are enabled here only with `create_graph`. torch's `once_differentiable` would treat the results as
        # constants when the upstream gradient is a constant one, and second derivatives would be silently wrong.
        if torch.is_grad_enabled():
            raise CocomixError(
                "the concept head and the chunked vocabulary loss have no second derivatives; take gradients without "
                "create_graph"
            )
        grad_values, _, grad_loss = grads
        *tensors, indices = ctx.saved_tensors
        head = _Head(*tensors, *ctx.settings)
        if grad_loss is not None and ctx.ready:
            gradients = ctx.ready.pop()
        else:
            gradients = _Gradients(head, ctx.wanted)
            if grad_loss is not None and head.labels is not None:  # a second backward through a retained graph
                _sweep(head, gradients)
        if grad_loss is not None:
            gradients.scale(grad_loss)
        if grad_values is not None and grad_values.shape[1]:
            gradients.add_largest(head, indices, grad_values)
        return (*gradients.returned(head), None, None, None, None, None, None)


# Kept out of compiled graphs: the chunks are fused by hand, and tracing would unroll them and save nothing.
_apply = torch.compiler.disable(_LinearHead.apply, reason="a linear head is fused by hand")


def linear_head(
    x: Float[Tensor, "N D"],
    weight: Float[Tensor, "C D"],
    bias: Float[Tensor, " C"] | None = None,
    *,
    labels: Int64[Tensor, "N A"] | None = None,
    num_largest: int = 0,
    logits_megabytes: int | None = None,
) -> tuple[Float[Tensor, "N K"], Int64[Tensor, "N K"], Float[Tensor, ""]]:
    """The largest logits of a linear head, and its summed cross entropy.

    z = weight @ x + bias;  loss = sum_n (logsumexp(z_n) - mean_a z_n[labels_a])

    The sum is over the rows with labels, the mean over the labels that a row has.

    Under autocast the products run in its dtype.

    Args:
        x: input of the head.
        weight: weight of the head.
        bias: bias of the head.
        labels: classes of each row, in [0, C), or negative for fewer labels than A; None: no loss.
        num_largest: K.
        logits_megabytes: memory for a chunk of logits, which has at least one row; None: on a CPU 64 for products in
            float32 and 128 below, elsewhere 512.

    Returns:
        values and indices of the largest logits, largest first, and the loss (zero without labels). Values and loss are
        at least float32 and differentiable once.

    Raises:
        CocomixError: in the backward pass, if second derivatives are requested (`create_graph`).
    """
    product_dtype = rounded_dtype(x.device) or torch.promote_types(x.dtype, weight.dtype)
    if logits_megabytes is None:
        logits_megabytes = default_megabytes(x.device.type, product_dtype)
    row_weights = None if labels is None else (labels >= 0).any(-1).to(torch.promote_types(x.dtype, torch.float32))
    outputs: tuple[Tensor, Tensor, Tensor] = _apply(
        x,
        weight,
        bias,
        labels,
        row_weights,
        num_largest,
        logits_megabytes * _MEGABYTE,
        product_dtype,
        torch.is_grad_enabled(),
    )
    return outputs
