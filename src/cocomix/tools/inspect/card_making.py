"""Concept cards from what was found of a model."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from cocomix.data.token_dataset import TokenDataset
from cocomix.tools.inspect.cards import SOURCES, ConceptCard, Context, Neighbour, TokenEffect
from cocomix.tools.inspect.effects import Effects, MeasuredEffects
from cocomix.tools.inspect.excerpts import any_contexts, decoder_of, excerpts
from cocomix.tools.inspect.naming import Namer
from cocomix.tools.inspect.occurrences import Occurrences

# Shapes: C concepts, N items kept of each.

#: Random places of the text that contexts are compared with for names.
NUM_BACKGROUND_PLACES = 8192
SIGNIFICANT_DIGITS = 6


@dataclass(frozen=True)
class Findings:
    """What is known of a model's concepts before it is laid out."""

    occurrences: Occurrences
    direct: Effects
    measured: MeasuredEffects | None
    nearest: tuple[Tensor, Tensor]
    """By rows of the compression: concepts and cosines, [C, N]."""
    nearest_predicted: tuple[Tensor, Tensor]
    """By rows of the head."""
    compress_norms: Tensor
    """[C]"""
    num_labels: Tensor | None
    """[C], over `num_labelled_tokens`."""
    num_labelled_tokens: int


def make_cards(findings: Findings, dataset: TokenDataset, num_contexts: int) -> Iterator[ConceptCard]:
    """Cards in order of their ids.

    Args:
        findings: of all concepts.
        dataset: the split in which they occurred.
        num_contexts: contexts of a source on a card; names are made from all that were kept.
    """
    strongest = findings.occurrences.strongest
    contexts = {source: excerpts(dataset, strongest[source], source) for source in SOURCES if source in strongest}
    tokens = _Tokens(dataset)
    promoted = tokens.effects(findings.direct.promoted, findings.direct.promoted_by)
    suppressed = tokens.effects(findings.direct.suppressed, findings.direct.suppressed_by)
    names = _names(findings, dataset, contexts, promoted)
    measured = _measured(findings.measured, tokens)
    nearest, nearest_predicted = (_neighbours(*found) for found in (findings.nearest, findings.nearest_predicted))
    numbers = _numbers(findings)
    not_measured: dict[str, Any] = dict.fromkeys(_MEASURED)
    for concept, name in enumerate(names):
        own = [context for of_source in contexts.values() for context in of_source[concept][:num_contexts]]
        yield ConceptCard(
            concept=concept,
            name=name,
            made_name=name,
            promoted=promoted[concept],
            suppressed=suppressed[concept],
            nearest=nearest[concept],
            nearest_predicted=nearest_predicted[concept],
            contexts=tuple(own),
            **measured.get(concept, not_measured),
            **_row(numbers, concept),
        )


def _row(columns: Mapping[str, Any], concept: int) -> dict[str, Any]:
    return {name: None if column is None else column[concept] for name, column in columns.items()}


_MEASURED = ("measured_promoted", "measured_suppressed", "measured_change")


def _names(
    findings: Findings,
    dataset: TokenDataset,
    contexts: Mapping[str, Sequence[Sequence[Context]]],
    promoted: Sequence[Sequence[TokenEffect]],
) -> list[str]:
    """Names from the first source that has contexts of a concept; concepts that are used most choose first."""
    found = [next((own[concept] for own in contexts.values() if own[concept]), []) for concept in range(len(promoted))]
    counts = findings.occurrences.strongest["prediction"].counts if findings.num_labels is None else findings.num_labels
    order = counts.argsort(descending=True, stable=True).tolist()
    num_places = min(NUM_BACKGROUND_PLACES, dataset.num_windows * dataset.context_length)
    namer = Namer(any_contexts(dataset, num_places))
    named = namer.names(
        [found[concept] for concept in order],
        [[effect.token for effect in promoted[concept]] for concept in order],
    )
    by_concept = dict(zip(order, named, strict=True))
    return [by_concept[concept] for concept in range(len(promoted))]


def _numbers(findings: Findings) -> dict[str, Any]:
    """The numbers of all concepts, by the card's field."""
    occurrences = findings.occurrences
    strongest, quality, activations = occurrences.strongest, occurrences.quality, occurrences.activations
    predicted = strongest["prediction"].counts
    labels, sae = findings.num_labels, strongest.get("sae")
    usual = activations.usual.masked_fill(predicted == 0, torch.nan)
    numbers: dict[str, Tensor | None] = {
        "label_rate": None if labels is None else labels / findings.num_labelled_tokens,
        "prediction_rate": predicted / occurrences.num_tokens,
        "sae_rate": None if sae is None else sae.counts / occurrences.num_tokens,
        "usual": usual,
        "precision": None if quality is None else quality.precision(),
        "recall": None if quality is None else quality.recall(),
        "mean_probability": None if quality is None else quality.mass / quality.num_tokens,
        "evaluated_label_rate": None if quality is None else quality.num_labels / quality.num_tokens,
        "compress_norm": findings.compress_norms,
    }
    columns = {name: None if column is None else _rounded(column) for name, column in numbers.items()}
    counts = {"num_labels": None if labels is None else labels.tolist(), "num_predicted": predicted.tolist()}
    return columns | counts


def _measured(found: MeasuredEffects | None, tokens: _Tokens) -> dict[int, dict[str, Any]]:
    if found is None:
        return {}
    promoted = tokens.effects(found.effects.promoted, found.effects.promoted_by)
    suppressed = tokens.effects(found.effects.suppressed, found.effects.suppressed_by)
    rows = zip(promoted, suppressed, _rounded(found.change), strict=True)
    return {concept: dict(zip(_MEASURED, row, strict=True)) for concept, row in zip(found.concepts, rows, strict=True)}


class _Tokens:
    """The vocabulary as text."""

    def __init__(self, dataset: TokenDataset) -> None:
        self._decode = decoder_of(dataset.tokenizer())
        self._texts: dict[int, str] = {}

    def effects(self, ids: Tensor, changes: Tensor) -> list[tuple[TokenEffect, ...]]:
        """[C, N] token ids and changes as items of the cards."""
        new = [token for token in ids.unique().tolist() if token not in self._texts]
        self._texts.update(zip(new, self._decode([[token] for token in new]), strict=True))
        return [
            tuple(TokenEffect(token, self._texts[token], _round(change)) for token, change in zip(*row, strict=True))
            for row in zip(ids.tolist(), changes.tolist(), strict=True)
        ]


def _neighbours(concepts: Tensor, similarities: Tensor) -> list[tuple[Neighbour, ...]]:
    return [
        tuple(Neighbour(concept, _round(similarity)) for concept, similarity in zip(*row, strict=True))
        for row in zip(concepts.tolist(), similarities.tolist(), strict=True)
    ]


def _rounded(column: Tensor) -> list[float | None]:
    """Numbers, None for nan."""
    return [None if math.isnan(value) else _round(value) for value in column.tolist()]


def _round(value: float) -> float:
    """Digits beyond these are those of rounding."""
    return float(f"{value:.{SIGNIFICANT_DIGITS}g}")
