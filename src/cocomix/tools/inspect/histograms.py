"""Histograms of many rows at once: of activations as they come, and of logits in hand."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int64
from torch import Tensor

# Shapes: C concepts, c concepts of a chunk, M values, V vocabulary.

#: Bins on each side of zero; between half of them and all are used.
BINS_PER_SIDE = 32
LOGIT_BINS = 40
SMALLEST = 2.0**-40


class Histograms:
    """A histogram for each concept, whose range doubles whenever a value falls outside.

    Args:
        num_concepts: C.
    """

    def __init__(self, num_concepts: int) -> None:
        self.counts = torch.zeros(num_concepts, 2 * BINS_PER_SIDE, dtype=torch.long)
        """Bins of equal width from -`reach` to `reach`."""
        self.reach = torch.full((num_concepts,), SMALLEST, dtype=torch.float64)

    def add(self, concepts: Int64[Tensor, " M"], values: Float[Tensor, " M"]) -> None:
        """Count values of some concepts, each named as often as it has values."""
        values = values.double()
        largest = torch.zeros_like(self.reach).scatter_reduce_(0, concepts, values.abs(), reduce="amax")
        outside = (largest >= self.reach).nonzero().squeeze(-1)
        doublings = (largest[outside] / self.reach[outside]).log2().floor().long() + 1
        places = torch.arange(-BINS_PER_SIDE, BINS_PER_SIDE)
        merged = (places >> doublings.unsqueeze(-1).clamp(max=62)) + BINS_PER_SIDE
        old = self.counts[outside]
        self.counts[outside] = torch.zeros_like(old).scatter_add_(-1, merged, old)
        self.reach[outside] *= 2.0**doublings
        bins = (values / self.reach[concepts] * BINS_PER_SIDE).floor().long().clamp(-BINS_PER_SIDE, BINS_PER_SIDE - 1)
        flat = concepts * 2 * BINS_PER_SIDE + bins + BINS_PER_SIDE
        self.counts += torch.bincount(flat, minlength=self.counts.numel()).view_as(self.counts)

    def of(self, concept: int) -> tuple[float, float, list[int]] | None:
        """Lower edge, width and counts of the bins from the first to the last that is not empty; None: all are."""
        filled = self.counts[concept].nonzero().squeeze(-1)
        if not len(filled):
            return None
        first, last = int(filled[0]), int(filled[-1])
        width = float(self.reach[concept]) / BINS_PER_SIDE
        return (first - BINS_PER_SIDE) * width, width, self.counts[concept, first : last + 1].tolist()


@dataclass(frozen=True)
class RowHistograms:
    """A histogram for each row of a matrix, from its smallest value to its largest."""

    edges: Float[Tensor, "C 2"]
    """Lower edge of the first bin, and the width of all."""
    counts: Int64[Tensor, "C N"]

    def of(self, row: int) -> tuple[float, float, list[int]]:
        """Lower edge, width and counts of the bins of one row."""
        start, width = self.edges[row].tolist()
        return start, width, self.counts[row].tolist()


def row_histograms(rows: Float[Tensor, "c V"]) -> RowHistograms:
    """Histograms of rows in hand, on the CPU."""
    low, high = rows.aminmax(dim=-1, keepdim=True)
    width = ((high - low) / LOGIT_BINS).clamp(min=math.ulp(1.0))
    bins = ((rows - low) / width).long().clamp_(0, LOGIT_BINS - 1)
    counts = torch.zeros(len(rows), LOGIT_BINS, dtype=torch.long, device=rows.device)
    counts.scatter_add_(-1, bins, torch.ones_like(bins))
    return RowHistograms(torch.cat([low, width], -1).cpu(), counts.cpu())
