"""Many continuations at once: every prompt under every edit, an edit for each row of a batch."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Int64
from torch import Tensor

from cocomix.base.progress import ProgressLine
from cocomix.modeling.model import CoCoMixForCausalLM
from cocomix.steering.concept_notes import ConceptNotes
from cocomix.steering.steer import steer

# Shapes: E edits, P prompts, T tokens of a prompt, N new tokens.


@dataclass(frozen=True)
class Continuing:
    """How prompts are continued, and what a strength is."""

    num_new_tokens: int
    """N; no continuation ends before."""
    pad_token_id: int
    temperature: float = 0.0
    """Of sampling; 0: always the likeliest token."""
    mode: str = "set"
    """See `cocomix.steer`; also the next three."""
    positions: Any = None
    unit: str = "raw"
    notes: ConceptNotes | None = None
    batch_size: int = 256
    """Rows in a batch at most, but at least one edit of all prompts."""


def sampling_options(temperature: float, top_k: int | None = None, top_p: float | None = None) -> dict[str, Any]:
    """Arguments of `generate` of transformers, all written out: no generation_config.json beside the weights decides.

    Args:
        temperature: 0: always the likeliest token.
        top_k: sample from so many of the likeliest tokens; None: from all.
        top_p: sample from the likeliest tokens that have this share of the probability; None: from all.
    """
    if not temperature:
        return {"do_sample": False}
    return {
        "do_sample": True,
        "temperature": temperature,
        "top_k": top_k or 0,
        "top_p": 1.0 if top_p is None else top_p,
    }


@torch.no_grad()
def continue_all(
    model: CoCoMixForCausalLM,
    prompts: Int64[Tensor, "P T"],
    edits: Sequence[Mapping[int, float]],
    how: Continuing,
    *,
    seed: int = 0,
    description: str | None = None,
) -> Iterator[Int64[Tensor, "E P T+N"]]:
    """Prompts and continuations under each edit, a few edits at a time and in their order.

    Args:
        model: in evaluation mode.
        prompts: of equal length.
        edits: concept to strength; an empty one continues without steering.
        how: see `Continuing`.
        seed: of sampling. The global random state is left alone between batches.
        description: name of the work in a progress line; None: no line.
    """
    P = len(prompts)
    size = max(1, how.batch_size // P)
    length = how.num_new_tokens
    settings = {"max_new_tokens": length, "min_new_tokens": length, **sampling_options(how.temperature)}
    with ProgressLine(description or "", len(edits) * P * length, shown=description is not None) as progress:
        for start in range(0, len(edits), size):
            part = edits[start : start + size]
            rows = prompts.repeat(len(part), 1)
            with torch.random.fork_rng(), steer(model, part, how.mode, how.positions, unit=how.unit, notes=how.notes):
                torch.manual_seed(seed * len(edits) + start)
                ids: Tensor = model.generate(
                    rows, attention_mask=torch.ones_like(rows), pad_token_id=how.pad_token_id, **settings
                )
            yield ids.unflatten(0, (len(part), P))
            progress.advance(len(part) * P * length)
