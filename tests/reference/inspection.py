"""Slow, obvious versions of what an inspection computes."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from cocomix.mixers.concept import ConceptMixer
from cocomix.modeling.model import CoCoMixForCausalLM
from cocomix.steering.steer import steer


def strongest(occurrences: list[tuple[int, int, int, float]], num_concepts: int, num_kept: int) -> list[list[float]]:
    """Values of each concept's strongest occurrences, one a window, from (window, position, concept, value)."""
    found: list[list[float]] = []
    for concept in range(num_concepts):
        best: dict[int, float] = {}
        for window, _, other, value in occurrences:
            if other == concept:
                best[window] = max(value, best.get(window, -torch.inf))
        found.append(sorted(best.values(), reverse=True)[:num_kept])
    return found


def concept_probabilities(model: CoCoMixForCausalLM, hidden: Tensor, num_labels: Tensor) -> Tensor:
    """A * softmax(z), at most 1: [B, T, C], from the number of each position's labels, [B, T, 1]."""
    mixer = model.mixer
    assert isinstance(mixer, ConceptMixer)
    x = (hidden - hidden.mean(-1, keepdim=True)) / (hidden.std(-1, keepdim=True) + 1e-5) - mixer.pre_bias
    return (num_labels * (x @ mixer.head_weight.t() + mixer.head_bias).softmax(-1)).clamp(max=1)


def direct_logits(model: CoCoMixForCausalLM, concept: int, tokens: Tensor) -> Tensor:
    """head(norm(w)) - head(norm(0)) of one concept, w scaled to length sqrt(D), about its mean."""
    mixer = model.mixer
    assert isinstance(mixer, ConceptMixer)
    w = F.normalize(mixer.compress_weight[concept], dim=0) * mixer.compress_weight.shape[1] ** 0.5
    head, norm = model.get_output_embeddings(), model.adapter.final_norm
    logits = (head(norm(w)) - head(norm(torch.zeros_like(w))))[tokens]
    return logits - logits.mean()


@torch.no_grad()
def set_one(
    model: CoCoMixForCausalLM, inputs: Tensor, kept: Tensor, concept: int, strength: float
) -> tuple[Tensor, float]:
    """Mean change of the next token's probability [V] with one concept set, and the mean total variation distance."""
    base = model(inputs).logits[:, kept].softmax(-1)
    with steer(model, {concept: strength}, mode="set"):
        edited = model(inputs).logits[:, kept].softmax(-1)
    change = edited - base
    return change.mean((0, 1)), float(change.abs().sum(-1).mean() / 2)
