"""Concept cards made from the results of an inspection: names, contexts, effects and numbers of each concept."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from tokenizers.decoders import DecodeStream
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from cocomix.base.formats import to_digits
from cocomix.data.token_dataset import TokenDataset
from cocomix.tools.inspect.cards import (
    SOURCES,
    TOKENS_AFTER,
    TOKENS_BEFORE,
    ConceptCard,
    Context,
    Histogram,
    Neighbour,
    TokenEffect,
)
from cocomix.tools.inspect.effects import Effects, MeasuredEffects
from cocomix.tools.inspect.histograms import RowHistograms
from cocomix.tools.inspect.naming import Namer
from cocomix.tools.inspect.occurrences import Occurrences, StrongestOccurrences

# Shapes: C concepts, N items kept of each.

#: Random positions of the text; a name is a pattern that is rarer there than in the concept's contexts.
NUM_BACKGROUND_POSITIONS = 8192
WINDOWS_PER_READ = 1024


@dataclass(frozen=True)
class InspectionResults:
    """Everything measured about a model's concepts, or a dictionary's latents."""

    occurrences: Occurrences
    direct: Effects
    logits: RowHistograms | None
    """Of the direct effects on all tokens; None: the model does not mix its concepts in."""
    measured: MeasuredEffects | None
    nearest: tuple[Tensor, Tensor]
    """Concepts and cosines by what they write, both [C, N]."""
    nearest_predicted: tuple[Tensor, Tensor]
    """The same by when they are active."""
    compress_norms: Tensor | None = None
    """[C]; None: a dictionary without a model."""
    num_labels: Tensor | None = None
    """[C], on `num_labelled_tokens` tokens."""
    num_labelled_tokens: int = 0


def make_cards(results: InspectionResults, dataset: TokenDataset, num_contexts: int) -> Iterator[ConceptCard]:
    """Cards in order of their ids.

    Args:
        results: of all concepts.
        dataset: the split that was read.
        num_contexts: contexts of each source on a card; names use all contexts that were kept.
    """
    strongest = results.occurrences.strongest
    contexts = {source: excerpts(dataset, strongest[source], source) for source in SOURCES if source in strongest}
    random = list(map(_in_quarters, excerpts(dataset, results.occurrences.sample, next(iter(contexts)))))
    tokens = _Tokens(dataset)
    promoted = tokens.effects(results.direct.promoted, results.direct.promoted_by)
    suppressed = tokens.effects(results.direct.suppressed, results.direct.suppressed_by)
    names = _names(results, dataset, contexts, promoted)
    measured = _measured(results.measured, tokens)
    nearest, nearest_predicted = (_neighbours(*pair) for pair in (results.nearest, results.nearest_predicted))
    numbers = _numbers(results)
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
            random_contexts=random[concept],
            histograms=tuple(_histograms(results, concept)),
            **measured.get(concept, not_measured),
            **_row(numbers, concept),
        )


def _in_quarters(contexts: Sequence[Context]) -> tuple[Context, ...]:
    """Random occurrences of a concept, strongest first, each with the quarter of them that it belongs to."""
    ordered = sorted(contexts, key=lambda context: -context.activation)
    return tuple(
        dataclasses.replace(context, quarter=4 - 4 * place // len(ordered)) for place, context in enumerate(ordered)
    )


def _histograms(results: InspectionResults, concept: int) -> Iterator[Histogram]:
    """Of its activations by source, and of its direct effects."""
    found = {source: histograms.of(concept) for source, histograms in results.occurrences.histograms.items()}
    if results.logits is not None:
        found["logits"] = results.logits.of(concept)
    for name, histogram in found.items():
        if histogram is not None:
            start, width, counts = histogram
            yield Histogram(name, to_digits(start), to_digits(width), tuple(counts))


def _row(columns: Mapping[str, Any], concept: int) -> dict[str, Any]:
    return {name: None if column is None else column[concept] for name, column in columns.items()}


_MEASURED = ("measured_promoted", "measured_suppressed", "measured_change")


def _names(
    results: InspectionResults,
    dataset: TokenDataset,
    contexts: Mapping[str, Sequence[Sequence[Context]]],
    promoted: Sequence[Sequence[TokenEffect]],
) -> list[str]:
    """Names from the first source that has contexts of a concept; the most used concepts choose their name first."""
    first = [next((own[concept] for own in contexts.values() if own[concept]), []) for concept in range(len(promoted))]
    *_, last = results.occurrences.strongest.values()
    counts = last.counts if results.num_labels is None else results.num_labels
    order = counts.argsort(descending=True, stable=True).tolist()
    num_positions = min(NUM_BACKGROUND_POSITIONS, dataset.num_windows * dataset.context_length)
    namer = Namer(random_contexts(dataset, num_positions))
    named = namer.names(
        [first[concept] for concept in order],
        [[effect.token for effect in promoted[concept]] for concept in order],
    )
    by_concept = dict(zip(order, named, strict=True))
    return [by_concept[concept] for concept in range(len(promoted))]


def _numbers(results: InspectionResults) -> dict[str, Any]:
    """The numbers of all concepts, by the field of the card."""
    occurrences = results.occurrences
    strongest, quality, activations = occurrences.strongest, occurrences.quality, occurrences.activations
    predicted = strongest["prediction"].counts if "prediction" in strongest else None
    labels, sae = results.num_labels, strongest.get("sae")
    usual = None
    if activations is not None and predicted is not None:
        usual = activations.mean_abs.masked_fill(predicted == 0, torch.nan)
    numbers: dict[str, Tensor | None] = {
        "label_rate": None if labels is None else labels / results.num_labelled_tokens,
        "prediction_rate": None if predicted is None else predicted / occurrences.num_tokens,
        "sae_rate": None if sae is None else sae.counts / occurrences.num_tokens,
        "usual": usual,
        "precision": None if quality is None else quality.precision(),
        "recall": None if quality is None else quality.recall(),
        "mean_probability": None if quality is None else quality.mass / quality.num_tokens,
        "evaluated_label_rate": None if quality is None else quality.num_labels / quality.num_tokens,
        "compress_norm": results.compress_norms,
    }
    columns = {name: None if column is None else _rounded(column) for name, column in numbers.items()}
    counts = {"num_labels": labels, "num_predicted": predicted}
    return columns | {name: None if column is None else column.tolist() for name, column in counts.items()}


def _measured(measured: MeasuredEffects | None, tokens: _Tokens) -> dict[int, dict[str, Any]]:
    if measured is None:
        return {}
    promoted = tokens.effects(measured.effects.promoted, measured.effects.promoted_by)
    suppressed = tokens.effects(measured.effects.suppressed, measured.effects.suppressed_by)
    rows = zip(promoted, suppressed, _rounded(measured.change), strict=True)
    return {
        concept: dict(zip(_MEASURED, row, strict=True)) for concept, row in zip(measured.concepts, rows, strict=True)
    }


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
            tuple(TokenEffect(token, self._texts[token], to_digits(change)) for token, change in zip(*row, strict=True))
            for row in zip(ids.tolist(), changes.tolist(), strict=True)
        ]


def _neighbours(concepts: Tensor, similarities: Tensor) -> list[tuple[Neighbour, ...]]:
    return [
        tuple(Neighbour(concept, to_digits(similarity)) for concept, similarity in zip(*row, strict=True))
        for row in zip(concepts.tolist(), similarities.tolist(), strict=True)
    ]


def _rounded(column: Tensor) -> list[float | None]:
    """Rounded numbers; None for nan."""
    return [None if math.isnan(value) else to_digits(value) for value in column.tolist()]


def decoder_of(tokenizer: PreTrainedTokenizerFast) -> Callable[[Sequence[Any]], list[str]]:
    """A function from many token sequences to their texts, special tokens included."""
    backend = tokenizer.backend_tokenizer
    return lambda sequences: list(backend.decode_batch([list(ids) for ids in sequences], skip_special_tokens=False))


def excerpts(dataset: TokenDataset, strongest: StrongestOccurrences, source: str) -> list[list[Context]]:
    """For each concept the contexts of its strongest occurrences; of equal texts only the strongest.

    Args:
        dataset: the split that was read.
        strongest: occurrences in that split.
        source: of `strongest`.
    """
    tokenizer = dataset.tokenizer()
    decode, split = decoder_of(tokenizer), _Splitter(tokenizer)
    windows, positions = strongest.windows.numpy(), strongest.positions.numpy()
    around = strongest.around.numpy()
    concept, slot = np.nonzero(windows >= 0)
    contexts: dict[tuple[int, int], Context] = {}
    # Window by window, so that each window is read once.
    order = np.argsort(windows[concept, slot], kind="stable")
    needed, row_of = np.unique(windows[concept, slot][order], return_inverse=True)
    for start in range(0, len(needed), WINDOWS_PER_READ):
        ids = dataset.input_ids(needed[start : start + WINDOWS_PER_READ]).numpy()
        here = (row_of >= start) & (row_of < start + WINDOWS_PER_READ)
        places = [(int(concept[i]), int(slot[i])) for i in order[here]]
        rows = row_of[here] - start
        at = [int(positions[place]) for place in places]
        first = [max(0, t - TOKENS_BEFORE) for t in at]
        tokens = [ids[row, a : t + 1 + TOKENS_AFTER].tolist() for row, a, t in zip(rows, first, at, strict=True)]
        before = decode([part[: t - a] for part, a, t in zip(tokens, first, at, strict=True)])
        token = decode([part[t - a : t - a + 1] for part, a, t in zip(tokens, first, at, strict=True)])
        after = decode([part[t - a + 1 :] for part, a, t in zip(tokens, first, at, strict=True)])
        for i, place in enumerate(places):
            start = TOKENS_BEFORE - at[i] + first[i]
            activations = around[place][start : start + len(tokens[i])].tolist()
            contexts[place] = Context(
                source,
                before[i],
                token[i],
                after[i],
                to_digits(activations[at[i] - first[i]]),
                int(windows[place]),
                at[i],
                split(tokens[i], before[i] + token[i] + after[i]),
                tuple(to_digits(value, 3) if value else 0.0 for value in activations),
            )
    by_concept: list[list[Context]] = [[] for _ in windows]
    seen: set[tuple[int, str, str, str]] = set()
    for place in sorted(contexts):
        context = contexts[place]
        text = (place[0], context.before, context.token, context.after)
        if text not in seen:
            seen.add(text)
            by_concept[place[0]].append(context)
    return by_concept


class _Splitter:
    """Splits excerpts into the texts of their tokens."""

    def __init__(self, tokenizer: PreTrainedTokenizerFast) -> None:
        self.decode, self.backend = decoder_of(tokenizer), tokenizer.backend_tokenizer
        self.texts: dict[int, str] = {}

    def __call__(self, tokens: Sequence[int], text: str) -> tuple[str, ...]:
        new = list({token for token in tokens if token not in self.texts})
        self.texts.update(zip(new, self.decode([[token] for token in new]), strict=True))
        pieces = tuple(self.texts[token] for token in tokens)
        if "".join(pieces) == text:
            return pieces
        # A character of several tokens comes with the last of them, and some tokenizers drop the space of a lone token.
        stream = DecodeStream(skip_special_tokens=False)
        return tuple(stream.step(self.backend, token) or "" for token in tokens)


def random_contexts(dataset: TokenDataset, num_contexts: int, seed: int = 0) -> list[Context]:
    """Contexts of random positions of a split: the background for names."""
    generator = np.random.default_rng(seed)
    windows = generator.integers(dataset.num_windows, size=(1, num_contexts))
    positions = generator.integers(dataset.context_length, size=(1, num_contexts))
    places = StrongestOccurrences(1, num_contexts)
    places.windows, places.positions = torch.from_numpy(windows), torch.from_numpy(positions)
    places.values.zero_()
    return excerpts(dataset, places, "any")[0]
