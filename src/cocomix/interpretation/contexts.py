"""Which concepts are used most, and where their latents are most active."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Int64
from torch import Tensor

from cocomix.base.labels import IGNORED_LABEL
from cocomix.concepts.contexts import Context, top_contexts
from cocomix.concepts.sae import SparseAutoencoder
from cocomix.concepts.teacher import Teacher
from cocomix.data.concept_dataset import ConceptDataset
from cocomix.data.token_dataset import TokenDataset

# Shapes: C concepts.

BATCH_SIZE = 32


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
    found = top_contexts(chosen, teacher, sae, dataset, num_contexts=num_contexts, max_windows=max_windows)
    total = int(counts.sum())
    return [ConceptCard(concept, int(counts[concept]) / total, found[concept]) for concept in chosen]
