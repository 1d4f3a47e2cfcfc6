"""How a concept vector enters the sequence of hidden states."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from cocomix.mixers.layout import Layout

# Shapes: B batch, T tokens, D width.


def _interleave(hidden: Tensor, vectors: Tensor) -> Tensor:
    """h_1, c_1, h_2, c_2, ..."""
    B, T, D = hidden.shape
    return torch.stack([hidden, vectors], dim=2).reshape(B, 2 * T, D)


@dataclass(frozen=True)
class Mixing:
    """One way of mixing.

    Args:
        interleaves: whether a concept has a position of its own, right behind its token.
        combine: (hidden [B, T, D], vectors [B, T, D]) -> [B, T, D], or [B, 2T, D] where it interleaves.
    """

    interleaves: bool
    combine: Callable[[Tensor, Tensor], Tensor]

    def layout(self, stride: int = 1, concept_window: int | None = None) -> Layout:
        """Of the positions above the mixer, with a concept behind every `stride`-th token where it interleaves."""
        return Layout(stride, concept_window) if self.interleaves else Layout()


MIXINGS: dict[str, Mixing] = {
    "interleave": Mixing(True, _interleave),
    "interleave_residual": Mixing(True, lambda hidden, vectors: _interleave(hidden, hidden + vectors)),
    "add": Mixing(False, torch.add),
    "none": Mixing(False, lambda hidden, _: hidden),
}
