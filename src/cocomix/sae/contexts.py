"""The contexts in which latents are most active."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from cocomix.data.token_dataset import TokenDataset
from cocomix.modeling.teacher import Teacher
from cocomix.sae.model import SparseAutoencoder
from cocomix.sae.quality import windows_per_batch

# Shapes: B batch, T tokens.

TOKENS_BEFORE = 12
TOKENS_AFTER = 6


@dataclass(frozen=True)
class Context:
    """One token at which a latent is active, and the text around it."""

    before: str
    token: str
    after: str
    activation: float


@torch.no_grad()
def top_contexts(
    latents: Sequence[int],
    teacher: Teacher,
    sae: SparseAutoencoder,
    dataset: TokenDataset,
    *,
    num_contexts: int = 5,
    max_windows: int | None = None,
) -> dict[int, tuple[Context, ...]]:
    """For each of some latents the tokens at which it is most active, best first; none where it never is.

    Args:
        latents: which.
        teacher: whose residual stream they read.
        sae: the dictionary.
        dataset: text to search, `max_windows` evenly spaced windows of it.
        num_contexts: contexts a latent, at most one from a window.
        max_windows: None: all.
    """
    best: dict[int, list[tuple[float, Tensor, int]]] = {latent: [] for latent in latents}
    for windows in dataset.batches(windows_per_batch(dataset), max_windows, description="finding contexts"):
        active = sae.encode(teacher.residual(**windows.inputs()))
        for latent in latents:
            activation = (active.values * (active.indices == latent)).sum(-1)  # (B, T)
            strongest, positions = activation.max(dim=-1)
            candidates = [
                (float(strongest[row]), windows.input_ids[row], int(positions[row]))
                for row in strongest.topk(min(num_contexts, len(strongest))).indices.tolist()
                if strongest[row] > 0
            ]
            best[latent] = sorted(best[latent] + candidates, key=lambda item: -item[0])[:num_contexts]
    tokenizer = dataset.tokenizer()
    return {
        latent: tuple(_context(tokenizer, ids, position, activation) for activation, ids, position in found)
        for latent, found in best.items()
    }


def _context(tokenizer: PreTrainedTokenizerFast, ids: Tensor, position: int, activation: float) -> Context:
    start = max(0, position - TOKENS_BEFORE)
    return Context(
        before=tokenizer.decode(ids[start:position]),
        token=tokenizer.decode(ids[position : position + 1]),
        after=tokenizer.decode(ids[position + 1 : position + 1 + TOKENS_AFTER]),
        activation=activation,
    )
