"""Scoped edits of the concept stream: one mechanism for causal probes, generation and steering.

An edit can change the concepts of every position at three points: the logits of a few concepts before the strongest are
chosen, the active concepts (indices and values), and the vector they compress to. Edits are scoped to one model and one
thread of execution (a `ContextVar`), nest, and end with their `with` block.

Where an edit acts, and on which row of a batch, is decided for each forward pass (`at`): with a cache a pass sees only the
new tokens, and beams multiply the rows.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from contextvars import ContextVar
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Int64
from torch import Tensor, nn

# Shapes: B batch, T tokens, K active concepts, M edited concepts, D width.


@dataclass(frozen=True)
class TokenContext:
    """The tokens of a forward pass."""

    positions: Int64[Tensor, "#B T"]
    """0-based positions, counted from each row's first attended token, so neither a cache nor left padding shifts them."""
    batch_size: int
    is_prompt: Bool[Tensor, " T"]
    """Whether each token belongs to the prompt of `generate`; outside `generate`, all do."""


class ConceptEdit:
    """An edit that changes nothing; subclasses override some of its methods."""

    def at(self, context: TokenContext) -> ConceptEdit:
        """The edit for one forward pass."""
        return self

    def logit_concepts(self) -> Tensor | None:
        """Concepts whose logits this edit may change, int64 [B, M]; values of C and above are padding. None: no concepts."""
        return None

    def edit_logits(self, concepts: Tensor, logits: Tensor) -> Tensor:
        """Replace the logits [B, T, M] of the concepts [B, M], before the strongest concepts are chosen."""
        return logits

    def edit_active(self, indices: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Replace the active concepts, int64 indices [B, T, K] and values [B, T, K]; K may grow."""
        return indices, values

    def edit_vectors(self, vectors: Tensor) -> Tensor:
        """Replace W_compress @ TopK(z), [B, T, D], before bias and scale are restored."""
        return vectors


_active_edits: ContextVar[tuple[tuple[int, ConceptEdit], ...]] = ContextVar("cocomix_edits", default=())
_num_prompt_tokens: ContextVar[int | None] = ContextVar("cocomix_num_prompt_tokens", default=None)


@contextlib.contextmanager
def concept_edits(model: nn.Module, *edits: ConceptEdit) -> Iterator[None]:
    """Apply `edits` to the concept stream of `model` in order, after the edits of enclosing blocks."""
    token = _active_edits.set(_active_edits.get() + tuple((id(model), edit) for edit in edits))
    try:
        yield
    finally:
        _active_edits.reset(token)


@contextlib.contextmanager
def generating(num_prompt_tokens: int) -> Iterator[None]:
    """Within the block, tokens after the first `num_prompt_tokens` of every row (padding included) count as generated."""
    token = _num_prompt_tokens.set(num_prompt_tokens)
    try:
        yield
    finally:
        _num_prompt_tokens.reset(token)


def current_edits(model: nn.Module) -> tuple[ConceptEdit, ...]:
    """The edits in force for `model`."""
    return tuple(edit for owner, edit in _active_edits.get() if owner == id(model))


def edits_at(
    model: nn.Module, positions: Int64[Tensor, "#B T"], num_past: int | Tensor, batch_size: int
) -> tuple[ConceptEdit, ...]:
    """The edits in force for `model`, prepared for one forward pass.

    Args:
        model: the model that runs.
        positions: positions of the tokens, counted from each row's first attended token.
        num_past: tokens per row that the cache already holds, padding included.
        batch_size: B.
    """
    edits = current_edits(model)
    if not edits:
        return ()
    columns = torch.arange(positions.shape[1], device=positions.device) + num_past
    num_prompt_tokens = _num_prompt_tokens.get()
    is_prompt = torch.ones_like(columns, dtype=torch.bool) if num_prompt_tokens is None else columns < num_prompt_tokens
    context = TokenContext(positions, batch_size, is_prompt)
    return tuple(edit.at(context) for edit in edits)
