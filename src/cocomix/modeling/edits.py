"""Scoped edits of the concept stream: one mechanism for causal probes, generation and steering.

An edit sees the active concepts of every position (indices and values) and the vector they compress to, and may replace
either. Edits are scoped to one model and one thread of execution (a `ContextVar`), nest, and end with their `with` block,
whatever ends it.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from contextvars import ContextVar
from typing import Any

import torch
from torch import Tensor, nn

from cocomix.base.errors import CocomixError

# Shapes: B batch, T tokens, K active concepts, D width.


class ConceptEdit:
    """An edit that changes nothing; subclasses override one of the two methods."""

    def edit_active(self, indices: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Replace the active concepts: indices [B, T, K] (int64) and values [B, T, K]; K may grow."""
        return indices, values

    def edit_vectors(self, vectors: Tensor) -> Tensor:
        """Replace W_compress @ TopK(z), [B, T, D], before bias and scale are put back."""
        return vectors


_active_edits: ContextVar[tuple[tuple[int, ConceptEdit], ...]] = ContextVar("cocomix_edits", default=())


@contextlib.contextmanager
def concept_edits(model: nn.Module, *edits: ConceptEdit) -> Iterator[None]:
    """Apply `edits` to the concept stream of `model`, in order, after those of enclosing blocks."""
    token = _active_edits.set(_active_edits.get() + tuple((id(model), edit) for edit in edits))
    try:
        yield
    finally:
        _active_edits.reset(token)


def edits_of(model: nn.Module) -> tuple[ConceptEdit, ...]:
    """Edits now in force for `model`."""
    return tuple(edit for owner, edit in _active_edits.get() if owner == id(model))


STEER_MODES = ("scale", "set", "add", "zero")


class Steer(ConceptEdit):
    """Edit one concept's activation at every position.

    Args:
        concept: its index.
        strength: factor (`scale`), value (`set`) or increment (`add`) of the activation, which is a raw logit and has the
            concept's own scale; unused by `zero`.
        mode: `scale` acts where the concept is active, `set` and `add` also insert it where it is not, `zero` removes it.
    """

    def __init__(self, concept: int, strength: float = 0.0, mode: str = "set") -> None:
        self.concept = concept
        self.strength = strength
        self.mode = mode

    def edit_active(self, indices: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        here = indices == self.concept
        if self.mode == "scale":
            return indices, torch.where(here, values * self.strength, values)
        if self.mode == "zero":
            return indices, torch.where(here, torch.zeros_like(values), values)
        if self.mode == "set":
            replaced = torch.where(here, torch.full_like(values, self.strength), values)
        else:
            replaced = torch.where(here, values + self.strength, values)
        # One more slot holds the concept where it was not active; where it was, the slot's value is zero.
        extra_index = torch.full_like(indices[..., :1], self.concept)
        extra_value = (~here.any(-1, keepdim=True)).to(values.dtype) * self.strength
        return torch.cat([indices, extra_index], -1), torch.cat([replaced, extra_value], -1)


@contextlib.contextmanager
def steer(model: nn.Module, strengths: Mapping[Any, float], mode: str = "set") -> Iterator[None]:
    """Steer `model` by concept index within a `with` block.

    Edits are those of the thread that enters the block: a thread started inside it, as with `TextIteratorStreamer`, enters
    a block of its own.

    Args:
        model: a `CoCoMixForCausalLM` with a concept mixer, also wrapped (compiled, data-parallel, with adapters).
        strengths: concept index (an integer) to strength; see `Steer` for what a strength means in each mode.
        mode: how a strength acts.

    Raises:
        CocomixError: the model has no concepts, a concept does not exist, or the mode is unknown.
    """
    model = _unwrapped(model)
    config: Any = model.config
    if mode not in STEER_MODES:
        raise CocomixError(f"mode is {mode!r}; it must be one of {', '.join(STEER_MODES)}")
    for concept in strengths:
        if not isinstance(concept, int):
            raise CocomixError(
                f"concept {concept!r} is no index; the model has concepts 0 to {config.num_concepts - 1}"
            )
        if not 0 <= concept < config.num_concepts:
            raise CocomixError(
                f"concept {concept} does not exist; the model has concepts 0 to {config.num_concepts - 1}"
            )
    with concept_edits(model, *(Steer(concept, strength, mode) for concept, strength in strengths.items())):
        yield


def _unwrapped(model: nn.Module) -> nn.Module:
    """The model with a concept mixer inside whatever wraps it: edits belong to that one."""
    for module in model.modules():
        config: Any = getattr(module, "config", None)
        if hasattr(module, "mixer") and getattr(config, "mixer", None) == "concept":
            return module
    raise CocomixError("only a model with a concept mixer can be steered")
