"""Steering as its definition says: one dense vector of C values a token, one token and one edit after another."""

from __future__ import annotations

import torch
from torch import Tensor


def steered_mixture(
    z: Tensor, num_active: int, edits: list[tuple[str, list[dict[int, float]]]], is_chosen: Tensor | None = None
) -> Tensor:
    """TopK(z) after edits, [B, T, C].

    Args:
        z: logits, [B, T, C].
        num_active: K.
        edits: mode, and strengths of each row.
        is_chosen: [B, T]; None: all tokens.
    """
    mixture = torch.zeros_like(z)
    for b in range(z.shape[0]):
        for t in range(z.shape[1]):
            here = [(mode, rows[b]) for mode, rows in edits if is_chosen is None or is_chosen[b, t]]
            logits = z[b, t].clone()
            for mode, strengths in here:
                if mode == "scale_logits":
                    for concept, strength in strengths.items():
                        logits[concept] *= strength
            strongest = logits.topk(num_active).indices
            mixture[b, t, strongest] = logits[strongest]
            for mode, strengths in here:
                for concept, strength in strengths.items():
                    value = float(mixture[b, t, concept])
                    new = {"scale": value * strength, "set": strength, "add": value + strength, "zero": 0.0}
                    mixture[b, t, concept] = new.get(mode, value)
    return mixture
