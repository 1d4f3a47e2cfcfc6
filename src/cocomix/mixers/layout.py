"""Which positions the blocks above a mixer see, and which of them predict the next token.

Interleaving puts a concept position right after every `stride`-th token, counted from the start of the row; tokens and
concepts share one numbering. Below the mixer, and above one that adds no positions, there are only tokens. The formulas
accept numbers and tensors, so that a static cache's length can stay on its device.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from cocomix.base.errors import CocomixError

# Shapes: B batch, T tokens of one forward pass, S positions of these tokens and their concepts, D width.


@dataclass(frozen=True)
class Layout:
    """The order of tokens and concepts in a span of blocks.

    Args:
        stride: tokens per concept position; 0: no concept positions.
    """

    stride: int = 0

    def num_positions(self, num_tokens: Any) -> Any:
        """Number of positions that a row's first `num_tokens` tokens take."""
        return num_tokens + num_tokens // self.stride if self.stride else num_tokens

    def num_tokens(self, num_positions: Any) -> Any:
        """Number of tokens among a row's first `num_positions` positions."""
        return num_positions - num_positions // (self.stride + 1) if self.stride else num_positions

    @property
    def positions_per_token(self) -> float:
        """Average number of positions per token in a long row."""
        return 1 + 1 / self.stride if self.stride else 1.0

    def is_concept(self, position: Any) -> Any:
        """Whether a position of a row belongs to a concept; requires a stride."""
        return position % (self.stride + 1) == self.stride

    def token_of(self, position: Any) -> Any:
        """The 0-based token that a position of a row belongs to; requires a stride."""
        return self.num_tokens(position + 1) - 1

    def attention_mask(self, attention_mask: Tensor | None) -> Tensor | None:
        """The padding mask of positions from the one of tokens: [B, keys] -> [B, positions].

        Raises:
            CocomixError: the mask has another shape, or a row starts with padding and the stride is above 1.
        """
        if attention_mask is None or not self.stride:
            return attention_mask
        if not isinstance(attention_mask, Tensor) or attention_mask.ndim != 2:
            raise CocomixError("an interleaved model takes attention masks of shape [batch, keys] only")
        if self.stride > 1 and not bool(attention_mask[:, 0].all()):
            raise CocomixError(
                f"a model with concept_stride {self.stride} takes no left-padded batches: concepts follow every "
                f"{self.stride}th token from the start of a row, so run rows of different lengths one by one or pad them "
                "on the right"
            )
        positions = torch.arange(self.num_positions(attention_mask.shape[1]), device=attention_mask.device)
        return attention_mask[:, self.token_of(positions)]

    def span(self, num_past: int | Tensor, num_tokens: int, device: torch.device | None = None) -> Span:
        """The positions of `num_tokens` new tokens after `num_past` earlier ones; requires a stride."""
        # If every token has a concept, `num_past` does not matter, and a static cache's length can stay on its device.
        num_past = 0 if self.stride == 1 else int(num_past)
        phase = num_past % self.stride
        positions = torch.arange(phase, self.num_positions(phase + num_tokens), device=device)
        return Span(self, num_past, phase, self.token_of(positions) - phase, self.is_concept(positions))


@dataclass(frozen=True)
class Span:
    """The positions of one forward pass above an interleaving mixer."""

    layout: Layout
    num_past: int
    """Number of tokens before the span; 0 if every token has a concept."""
    phase: int
    """Number of tokens between the last concept and the span."""
    token: Int64[Tensor, " S"]
    """The 0-based new token that each position belongs to."""
    is_concept: Bool[Tensor, " S"]

    @property
    def read(self) -> slice | Tensor:
        """The positions that predict the next token, in order: the last position of each token."""
        stride = self.layout.stride
        if stride == 1:
            return slice(1, None, 2)
        tokens = torch.arange(self.phase + 1, self.phase + 1 + self.num_tokens, device=self.token.device)
        read: Tensor = self.layout.num_positions(tokens) - 1 - self.phase
        return read

    @property
    def unread(self) -> slice:
        """The positions that predict nothing: tokens that are followed by a concept."""
        return slice(self.layout.stride - 1 - self.phase, None, self.layout.stride + 1)

    @property
    def num_tokens(self) -> int:
        return self.layout.num_tokens(self.phase + len(self.token)) - self.phase  # type: ignore[no-any-return]

    def kept(self, interleaved: Float[Tensor, "B _ D"]) -> Float[Tensor, "B S D"]:
        """The positions of this layout, from a sequence with a concept after every token."""
        if self.layout.stride == 1:
            return interleaved
        return interleaved.index_select(1, 2 * self.token + self.is_concept)

    def positions(self, position_ids: Int64[Tensor, "#B T"], mode: str) -> Int64[Tensor, "#B S"]:
        """Rotary positions: equal to the tokens' (`shared`), or counted from each token position 0 (`sequential`)."""
        if mode == "shared":
            return position_ids[:, self.token]
        columns = torch.arange(position_ids.shape[1], device=position_ids.device) + self.num_past
        first, count = columns - position_ids, self.layout.num_positions
        positions: Tensor = (count(columns) - count(first))[:, self.token] + self.is_concept
        return positions

    def packed_positions(self, position_ids: Int64[Tensor, "#B T"] | None) -> Int64[Tensor, "#B S"] | None:
        """Positions within the span, restarting at 0 wherever the tokens' positions do."""
        return None if position_ids is None else self.positions(position_ids, "sequential")
