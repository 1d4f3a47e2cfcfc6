"""How a vector enters the sequence of hidden states: a new way is a row in `MIXINGS`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

# Shapes: B batch, T tokens, D width.


def _interleave(hidden: Tensor, vectors: Tensor) -> Tensor:
    """h_1, c_1, h_2, c_2, ..."""
    import torch  # imported here so that settings can be read without it

    B, T, D = hidden.shape
    return torch.stack([hidden, vectors], dim=2).reshape(B, 2 * T, D)


@dataclass(frozen=True)
class Mixing:
    """One way of mixing."""

    interleaves: bool
    """Whether a concept has its own position, right after its token."""
    combine: Callable[[Tensor, Tensor], Tensor]
    """(hidden [B, T, D], vectors [B, T, D]) -> [B, T, D], or [B, 2T, D] if it interleaves."""
    summary: str
    """What happens to the vectors, in a few words."""


MIXINGS: dict[str, Mixing] = {
    "interleave": Mixing(True, _interleave, "interleaved with the hidden states"),
    "interleave_residual": Mixing(
        True,
        lambda hidden, vectors: _interleave(hidden, hidden + vectors),
        "interleaved with the hidden states, each added to its token's",
    ),
    "add": Mixing(False, lambda hidden, vectors: hidden + vectors, "added to the hidden states"),
    "none": Mixing(False, lambda hidden, _: hidden, "predicted, and not mixed in"),
}
