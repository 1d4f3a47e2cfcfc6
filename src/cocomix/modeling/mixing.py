"""How a concept vector enters the sequence of hidden states, and where the next token is read."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from cocomix.base.errors import CocomixError

# Shapes: B batch, T tokens, S = positions_per_token * T, D width.


def _interleave(hidden: Tensor, vectors: Tensor) -> Tensor:
    """h_1, c_1, h_2, c_2, ..."""
    B, T, D = hidden.shape
    return torch.stack([hidden, vectors], dim=2).reshape(B, 2 * T, D)


@dataclass(frozen=True)
class Mixing:
    """One way of mixing.

    Args:
        positions_per_token: 1, or 2 where a concept has a position of its own, right behind its token.
        combine: (hidden [B, T, D], vectors [B, T, D]) -> [B, S, D].
    """

    positions_per_token: int
    combine: Callable[[Tensor, Tensor], Tensor]

    def read(self, hidden: Float[Tensor, "B S D"]) -> Float[Tensor, "B T D"]:
        """The positions that predict the next token: with interleaving only the concepts'."""
        return hidden[:, self.positions_per_token - 1 :: self.positions_per_token]

    def positions(self, position_ids: Int64[Tensor, "B T"], mode: str) -> Int64[Tensor, "B S"]:
        """Rotary positions above the mixer: `shared` (t, t) or `sequential` (2t, 2t + 1)."""
        if self.positions_per_token == 1:
            return position_ids
        if mode == "shared":
            return position_ids.repeat_interleave(2, dim=1)
        return torch.stack([2 * position_ids, 2 * position_ids + 1], dim=2).flatten(1)

    def packed_positions(self, position_ids: Int64[Tensor, "B T"] | None) -> Int64[Tensor, "B S"] | None:
        """Positions of the span itself, which start over where those of the tokens do."""
        return None if position_ids is None else self.positions(position_ids, "sequential")

    def attention_mask(self, attention_mask: Tensor | None) -> Tensor | None:
        """The padding mask above the mixer: [B, keys] -> [B, positions_per_token * keys]."""
        if attention_mask is None or self.positions_per_token == 1:
            return attention_mask
        if not isinstance(attention_mask, Tensor) or attention_mask.ndim != 2:
            raise CocomixError("an interleaved model takes attention masks of shape [batch, keys] only")
        return attention_mask.repeat_interleave(2, dim=1)


MIXINGS: dict[str, Mixing] = {
    "interleave": Mixing(2, _interleave),
    "interleave_residual": Mixing(2, lambda hidden, vectors: _interleave(hidden, hidden + vectors)),
    "add": Mixing(1, torch.add),
    "none": Mixing(1, lambda hidden, _: hidden),
}
