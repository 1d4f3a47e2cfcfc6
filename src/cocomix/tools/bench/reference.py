"""CoCoMix on GPT-2 as the paper describes it: the reference for the fast paths, in tests and in `cocomix bench`.

`gpt2` maps token ids and a dictionary of weights to the loss. It shares nothing with the code that it judges: it uses torch,
but no module, adapter, layout, mask or cache of this package. It computes logits of all C concepts, a mask of the K largest,
mask times logits times the whole compress matrix, one cross-entropy per label, and all vocabulary logits at once; every
position goes through every block. Weights are named as in `CoCoMixForCausalLM`.

Shapes: B batch, T tokens, S positions, N = B * T, D width, C concepts, K active concepts, A labels per token, V vocabulary.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

EPSILON = 1e-5
Weights = Mapping[str, Tensor]


@dataclass(frozen=True)
class Concepts:
    """Concepts predicted from hidden states, and their loss."""

    vectors: Tensor
    """[B, T, D], at the scale of the hidden states."""
    indices: Tensor
    """[B, T, K]"""
    values: Tensor
    """[B, T, K]"""
    loss_sum: Tensor
    """Sum over the labelled tokens of the mean cross-entropy of their labels."""
    num_labelled: Tensor
    """Number of labelled tokens."""


def concept_head(x: Tensor, weight: Tensor, bias: Tensor, K: int) -> tuple[Tensor, Tensor, Tensor]:
    """All logits z [N, C], z with all entries zeroed except the K largest, and the indices of these [N, K]."""
    z = F.linear(x, weight, bias)
    indices = z.topk(K, dim=-1).indices
    mask = torch.zeros_like(z).scatter(-1, indices, 1.0)
    return z, mask * z, indices


def concept_losses(z: Tensor, labels: Tensor) -> Tensor:
    """The mean loss of each row's labels, [N], with labels [N, A], negative where a row has fewer; zero without any."""
    columns = labels.clamp(min=0).unbind(-1)
    losses = torch.stack([F.cross_entropy(z, column, reduction="none") for column in columns], -1)
    return (losses * (labels >= 0)).sum(-1) / (labels >= 0).sum(-1).clamp(min=1)


def concepts(h: Tensor, weights: Weights, labels: Tensor | None, *, K: int, rescale_epsilon: float = 0.0) -> Concepts:
    """Predict, choose, compress (paper, section 3.2).

    Args:
        h: hidden states [B, T, D].
        weights: weights of the mixer.
        labels: [B, T, A], negative in place of each that is missing.
        K: number of active concepts.
        rescale_epsilon: epsilon added to the standard deviation when vectors are scaled back.
    """
    B, T, D = h.shape
    mean, std = h.mean(-1, keepdim=True), h.std(-1, keepdim=True)
    x = ((h - mean) / (std + EPSILON) - weights["pre_bias"]).view(B * T, D)
    z, active, indices = concept_head(x, weights["head_weight"], weights["head_bias"], K)
    vectors = (active @ weights["compress_weight"]).view(B, T, D) + weights["compress_bias"] + weights["pre_bias"]
    loss_sum, count = z.new_zeros(()), torch.zeros((), dtype=torch.long, device=z.device)
    if labels is not None:
        loss_sum, count = concept_losses(z, labels.flatten(0, 1)).sum(), (labels >= 0).any(-1).sum()
    values = active.gather(-1, indices)
    return Concepts(
        vectors * (std + rescale_epsilon) + mean, indices.view(B, T, K), values.view(B, T, K), loss_sum, count
    )


@dataclass(frozen=True)
class Output:
    """Output of the student."""

    loss: Tensor
    """Next-token loss plus weighted concept loss."""
    logits: Tensor
    """[B, T, V]"""
    concept_indices: Tensor
    """[B, T, K]"""


def gpt2(
    weights: Weights,
    ids: Tensor,
    labels: Tensor,
    *,
    num_blocks: int,
    num_heads: int,
    layer: int,
    K: int,
    concept_weight: float,
    is_residual: bool = False,
    rescale_epsilon: float = 0.0,
) -> Output:
    """Run GPT-2 with concepts interleaved after block `layer`.

    Args:
        weights: weights of the whole model.
        ids: token ids [B, T].
        labels: [B, T, A], negative in place of each that is missing.
        num_blocks: number of decoder blocks.
        num_heads: number of attention heads.
        layer: 0-based block after which concepts are inserted; -1: below the first.
        K: number of active concepts.
        concept_weight: lambda, weight of the concept loss.
        is_residual: whether a concept position starts from its token's hidden state.
        rescale_epsilon: as in `concepts`.
    """
    (B, T), body = ids.shape, _of(weights, "backbone.transformer.")
    h = body["wte.weight"][ids] + body["wpe.weight"][:T]
    for i in range(layer + 1):
        h = block(h, _of(body, f"h.{i}."), num_heads)
    mixed = concepts(h, _of(weights, "mixer."), labels, K=K, rescale_epsilon=rescale_epsilon)
    start = h + mixed.vectors if is_residual else mixed.vectors
    h = torch.stack([h, start], dim=2).view(B, 2 * T, -1)  # h_1, c_1, h_2, c_2, ...
    for i in range(layer + 1, num_blocks):
        h = block(h, _of(body, f"h.{i}."), num_heads)
    logits = norm(h[:, 1::2], _of(body, "ln_f.")) @ body["wte.weight"].T
    loss = F.cross_entropy(logits[:, :-1].flatten(0, 1), ids[:, 1:].flatten())
    return Output(loss + concept_weight * mixed.loss_sum / mixed.num_labelled.clamp(min=1), logits, mixed.indices)


def block(h: Tensor, weights: Weights, num_heads: int) -> Tensor:
    """One pre-norm GPT-2 block, [B, S, D]."""
    h = h + attention(norm(h, _of(weights, "ln_1.")), _of(weights, "attn."), num_heads)
    x = linear(norm(h, _of(weights, "ln_2.")), _of(weights, "mlp.c_fc."))
    gelu = 0.5 * x * (1 + torch.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x.pow(3))))
    return h + linear(gelu, _of(weights, "mlp.c_proj."))


def attention(x: Tensor, weights: Weights, num_heads: int) -> Tensor:
    """Causal multi-head attention."""
    B, S, D = x.shape
    heads = [part.view(B, S, num_heads, -1).transpose(1, 2) for part in linear(x, _of(weights, "c_attn.")).split(D, -1)]
    mixed = F.scaled_dot_product_attention(heads[0], heads[1], heads[2], is_causal=True)
    return linear(mixed.transpose(1, 2).reshape(B, S, D), _of(weights, "c_proj."))


def linear(x: Tensor, weights: Weights) -> Tensor:
    """A linear layer with GPT-2's weights, which are [in, out]."""
    return F.linear(x, weights["weight"].T, weights["bias"])


def norm(x: Tensor, weights: Weights) -> Tensor:
    return F.layer_norm(x, x.shape[-1:], weights["weight"], weights["bias"], EPSILON)


def _of(weights: Weights, prefix: str) -> Weights:
    """The weights whose names start with `prefix`, named without it."""
    return {name.removeprefix(prefix): weight for name, weight in weights.items() if name.startswith(prefix)}
