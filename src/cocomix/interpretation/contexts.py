"""Which concepts are used most, and the contexts in which their latents are most active."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Int64
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from cocomix.base.labels import IGNORED_LABEL
from cocomix.concepts.sae import SparseAutoencoder
from cocomix.concepts.teacher import Teacher
from cocomix.data.concept_dataset import ConceptDataset
from cocomix.data.token_dataset import TokenDataset

# Shapes: B batch, T tokens, A labels a token, C concepts.

BATCH_SIZE = 32
TOKENS_BEFORE = 12
TOKENS_AFTER = 6


@dataclass(frozen=True)
class Context:
    """One token at which a latent is active, and the text around it."""

    before: str
    token: str
    after: str
    activation: float


@dataclass(frozen=True)
class ConceptCard:
    """One concept: how often it is a label and where its latent is most active."""

    concept: int
    label_share: float
    """Share of all labels."""
    contexts: tuple[Context, ...]


def label_counts(concepts: ConceptDataset) -> Int64[Tensor, " C"]:
    """How often each concept is a label."""
    counts = torch.zeros(concepts.num_concepts, dtype=torch.long)
    for start in range(0, concepts.num_windows, BATCH_SIZE):
        labels = concepts.labels(range(start, min(start + BATCH_SIZE, concepts.num_windows)))
        counts += torch.bincount(labels[labels != IGNORED_LABEL], minlength=concepts.num_concepts)
    return counts


def most_used_concepts(
    concepts: ConceptDataset,
    teacher: Teacher,
    sae: SparseAutoencoder,
    dataset: TokenDataset,
    *,
    num_concepts: int = 20,
    num_contexts: int = 5,
    max_windows: int | None = None,
) -> list[ConceptCard]:
    """Cards of the concepts that are labels most often.

    Args:
        concepts: whose labels are counted.
        teacher: whose residual stream the latents read.
        sae: the dictionary.
        dataset: text to search for contexts, `max_windows` evenly spaced windows of it.
        num_concepts: cards to make.
        num_contexts: contexts a card, at most one from a window.
        max_windows: None: all.
    """
    counts = label_counts(concepts)
    chosen = counts.topk(min(num_concepts, len(counts))).indices.tolist()
    found = _strongest(chosen, teacher, sae, dataset, num_contexts, max_windows)
    tokenizer = dataset.tokenizer()
    total = int(counts.sum())
    return [
        ConceptCard(
            concept,
            int(counts[concept]) / total,
            tuple(_context(tokenizer, ids, position, activation) for activation, ids, position in found[concept]),
        )
        for concept in chosen
    ]


@torch.no_grad()
def _strongest(
    chosen: Sequence[int],
    teacher: Teacher,
    sae: SparseAutoencoder,
    dataset: TokenDataset,
    num_contexts: int,
    max_windows: int | None,
) -> dict[int, list[tuple[float, Tensor, int]]]:
    """For each concept its strongest (activation, window's ids, position), best first, one a window."""
    best: dict[int, list[tuple[float, Tensor, int]]] = {concept: [] for concept in chosen}
    for input_ids in dataset.batches(BATCH_SIZE, max_windows, description="finding contexts"):
        latents = sae.encode(teacher.residual(input_ids))
        for concept in chosen:
            activation = (latents.values * (latents.indices == concept)).sum(-1)  # (B, T)
            strongest, positions = activation.max(dim=-1)
            candidates = [
                (float(strongest[row]), input_ids[row], int(positions[row]))
                for row in strongest.topk(min(num_contexts, len(strongest))).indices.tolist()
                if strongest[row] > 0
            ]
            best[concept] = sorted(best[concept] + candidates, key=lambda item: -item[0])[:num_contexts]
    return best


def _context(tokenizer: PreTrainedTokenizerFast, ids: Tensor, position: int, activation: float) -> Context:
    start = max(0, position - TOKENS_BEFORE)
    return Context(
        before=tokenizer.decode(ids[start:position]),
        token=tokenizer.decode(ids[position : position + 1]),
        after=tokenizer.decode(ids[position + 1 : position + 1 + TOKENS_AFTER]),
        activation=activation,
    )
