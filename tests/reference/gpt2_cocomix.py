"""Interleaved CoCoMix on GPT-2 as a plain transcription of the method, from a dictionary of weights.

No attention masks but a triangle, no caches, no modules: one function from token ids to the loss.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor
from torch.nn import functional as F

from tests.reference.concepts import compress, concept_head, interleave


def loss(
    weights: Mapping[str, Tensor],
    input_ids: Tensor,
    concept_labels: Tensor,
    *,
    num_blocks: int,
    num_heads: int,
    insert_layer: int,
    num_active: int,
    concept_weight: float,
    residual: bool,
) -> tuple[Tensor, Tensor]:
    """Objective and logits [B, T, V]; weights are named as in `CoCoMixForCausalLM`."""
    T = input_ids.shape[1]
    h = weights["backbone.transformer.wte.weight"][input_ids] + weights["backbone.transformer.wpe.weight"][:T]
    for i in range(insert_layer):
        h = block(h, weights, i, num_heads)

    mean, std = h.mean(-1, keepdim=True), h.std(-1, keepdim=True, unbiased=True)
    pre_bias = weights["mixer.pre_bias"]
    x = (h - mean) / (std + 1e-5) - pre_bias
    labels = concept_labels.clamp(min=0).flatten(0, 1)
    active, losses = concept_head(
        x.flatten(0, 1), weights["mixer.head_weight"], weights["mixer.head_bias"], num_active, labels
    )
    valid = (concept_labels >= 0).all(-1).flatten()
    concept_loss = losses[valid].mean()
    vectors = compress(active, weights["mixer.compress_weight"]).view_as(h)
    c = (vectors + weights["mixer.compress_bias"] + pre_bias) * std + mean

    h = interleave(h, h + c if residual else c)
    for i in range(insert_layer, num_blocks):
        h = block(h, weights, i, num_heads)
    h = h[:, 1::2]
    h = norm(h, weights, "backbone.transformer.ln_f")
    logits = h @ weights["backbone.transformer.wte.weight"].T
    lm_loss = F.cross_entropy(logits[:, :-1].flatten(0, 1), input_ids[:, 1:].flatten())
    return lm_loss + concept_weight * concept_loss, logits


def block(h: Tensor, weights: Mapping[str, Tensor], i: int, num_heads: int) -> Tensor:
    """One pre-norm GPT-2 block."""
    name = f"backbone.transformer.h.{i}"
    h = h + attention(norm(h, weights, f"{name}.ln_1"), weights, f"{name}.attn", num_heads)
    x = norm(h, weights, f"{name}.ln_2") @ weights[f"{name}.mlp.c_fc.weight"] + weights[f"{name}.mlp.c_fc.bias"]
    gelu = 0.5 * x * (1 + torch.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))
    return h + gelu @ weights[f"{name}.mlp.c_proj.weight"] + weights[f"{name}.mlp.c_proj.bias"]


def attention(x: Tensor, weights: Mapping[str, Tensor], name: str, num_heads: int) -> Tensor:
    """Causal multi-head attention, one head after another."""
    _, S, D = x.shape
    qkv = x @ weights[f"{name}.c_attn.weight"] + weights[f"{name}.c_attn.bias"]
    q, k, v = qkv.split(D, dim=-1)
    size = D // num_heads
    heads = []
    for head in range(num_heads):
        part = slice(head * size, (head + 1) * size)
        scores = q[..., part] @ k[..., part].transpose(1, 2) / math.sqrt(size)
        scores = scores.masked_fill(torch.ones(S, S).triu(1).bool(), -torch.inf)
        heads.append(scores.softmax(-1) @ v[..., part])
    return torch.cat(heads, -1) @ weights[f"{name}.c_proj.weight"] + weights[f"{name}.c_proj.bias"]


def norm(x: Tensor, weights: Mapping[str, Tensor], name: str) -> Tensor:
    """LayerNorm."""
    centred = x - x.mean(-1, keepdim=True)
    variance = centred.pow(2).mean(-1, keepdim=True)
    return centred / torch.sqrt(variance + 1e-5) * weights[f"{name}.weight"] + weights[f"{name}.bias"]
