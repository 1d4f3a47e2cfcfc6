"""Concept head and compression at the cost of their arithmetic.

The paper's formulation builds logits, a mask and a masked product, each [N, C], and keeps them for the backward pass. Here
the head works through the rows in chunks (`mixers/linear_head.py`), and the compression gathers K rows.

Shapes: N = B * T rows, D width, C concepts, K active concepts, A labels per row.
"""

from __future__ import annotations

from jaxtyping import Float, Int64
from torch import Tensor
from torch.nn import functional as F

from cocomix.mixers.linear_head import linear_head


def predict_concepts(
    x: Float[Tensor, "N D"],
    weight: Float[Tensor, "C D"],
    bias: Float[Tensor, " C"],
    num_active: int,
    labels: Int64[Tensor, "N A"] | None = None,
    logits_megabytes: int | None = None,
) -> tuple[Float[Tensor, "N K"], Int64[Tensor, "N K"], Float[Tensor, ""]]:
    """The `num_active` largest concept logits of each row, and the concept loss, summed over the rows.

    z = weight @ x + bias;  loss = sum_n (logsumexp(z_n) - mean_k z_n[labels_k])  (paper, equation 4)

    The sum is over the rows with labels, the mean over the labels that a row has.

    Args:
        x: normalised hidden states.
        weight: weight of the head.
        bias: bias of the head.
        num_active: K_mix.
        labels: concepts of each row, in [0, C), or negative for fewer labels than A; None: the loss is zero and not computed.
        logits_megabytes: memory for a chunk of logits; None: by the device.

    Returns:
        values (raw logits, which can be negative) and indices of the active concepts, largest first, and the loss. Values
        and loss are differentiable, and at least float32.
    """
    return linear_head(
        x,
        weight,
        bias,
        labels=labels,
        num_largest=num_active,
        logits_megabytes=logits_megabytes,
    )


def compress_concepts(
    values: Float[Tensor, "N K"], indices: Int64[Tensor, "N K"], weight: Float[Tensor, "C D"]
) -> Float[Tensor, "N D"]:
    """W_compress @ TopK(z), by gathering K rows of the transposed matrix instead of a dense [N, C] product.

    The sum has the weight's dtype even under autocast: for K rows a shorter format would save nothing.
    """
    return F.embedding_bag(indices, weight, per_sample_weights=values.to(weight.dtype), mode="sum")
