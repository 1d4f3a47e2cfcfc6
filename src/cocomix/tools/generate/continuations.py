"""Continuations of many prompts under many edits, in batches with an edit for each row."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Int64
from torch import Tensor

from cocomix.base.errors import NUM_SEEDS
from cocomix.base.progress import ProgressLine
from cocomix.modeling.model import CoCoMixForCausalLM
from cocomix.steering.concept_metadata import ConceptMetadata
from cocomix.steering.modes import DEFAULT_MODE
from cocomix.steering.steer import steer
from cocomix.tools.generate.tokens import Sampling, next_tokens

# Shapes: E edits, P prompts, T tokens of a prompt, N new tokens.


@dataclass(frozen=True)
class GenerationSettings:
    """How prompts are continued, and what a strength means."""

    num_new_tokens: int
    """N tokens per continuation; the end of a text is never chosen."""
    end_token_id: int
    temperature: float = 0.0
    """Of sampling; 0: always the likeliest token."""
    mode: str = DEFAULT_MODE
    """See `cocomix.steer` for `mode`, `positions`, `unit` and `metadata`."""
    positions: Any = None
    unit: str = "raw"
    metadata: ConceptMetadata | None = None
    batch_size: int = 256
    """Rows in a batch at most; at least all prompts under one edit."""


def continue_all(
    model: CoCoMixForCausalLM,
    prompts: Int64[Tensor, "P T"],
    edits: Sequence[Mapping[int, float]],
    settings: GenerationSettings,
    *,
    seed: int = 0,
    description: str | None = None,
) -> Iterator[Int64[Tensor, "E P T+N"]]:
    """Prompts and their continuations under each edit, a batch of edits at a time and in their order.

    Args:
        model: in evaluation mode.
        prompts: of equal length.
        edits: concept to strength; an empty one continues without steering.
        settings: see `GenerationSettings`.
        seed: of sampling. The global random state is left alone.
        description: name of the work in a progress line; None: no line.
    """
    P, N = len(prompts), settings.num_new_tokens
    size = max(1, settings.batch_size // P)
    with ProgressLine(description or "", len(edits) * P * N, shown=description is not None) as progress:
        for start in range(0, len(edits), size):
            part = edits[start : start + size]
            rows = prompts.repeat(len(part), 1)
            sampling = Sampling(settings.temperature, seed=(seed * len(edits) + start) % NUM_SEEDS)
            with steer(model, part, settings.mode, settings.positions, unit=settings.unit, metadata=settings.metadata):
                tokens = list(next_tokens(model, rows, N, sampling, end_token_id=settings.end_token_id, ends=False))
            ids = torch.cat([rows.to(model.device), torch.stack(tokens, dim=1)], dim=1)
            yield ids.unflatten(0, (len(part), P))
            progress.advance(len(part) * P * N)
