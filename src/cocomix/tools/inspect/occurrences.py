"""One pass over text: where each concept is strongest, how often it occurs, and how well it is predicted.

A concept can occur in three ways: its latent is active in the teacher's autoencoder (`sae`), it is a label of the token
(`label`), and it is active in the model's mixture (`prediction`). Of each concept and source only the strongest occurrences
are kept, [C, N] values and positions, and what it is worth at the tokens around them; of one source also random ones. A batch
is thinned to one occurrence per window and concept, then to those that beat the weakest one kept, so that little is left to
sort. Random occurrences are those of the largest random numbers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Int64
from torch import Tensor

from cocomix.base.progress import ProgressLine
from cocomix.data import IGNORED_LABEL
from cocomix.data.concept_dataset import ConceptDataset
from cocomix.data.token_dataset import TokenDataset, Windows
from cocomix.labels.attribution import ConceptExtractor, ScoredLabels
from cocomix.mixers.base import MixerInputs
from cocomix.mixers.edits import ConceptEdit
from cocomix.modeling.model import CoCoMixForCausalLM
from cocomix.sae.quality import windows_per_batch
from cocomix.steering.activations import ActivationRecorder
from cocomix.steering.concept_metadata import ActivationStatistics
from cocomix.tools.inspect.cards import TOKENS_AFTER, TOKENS_BEFORE
from cocomix.tools.inspect.histograms import Histograms
from cocomix.tools.inspect.prediction_quality import PredictionQuality

# Shapes: B windows, T tokens, K concepts of a token, A labels of a token, C concepts, N occurrences kept of a concept,
# M occurrences in hand, V vocabulary, E tokens of an excerpt.

_OFFSETS = torch.arange(-TOKENS_BEFORE, TOKENS_AFTER + 1)


class StrongestOccurrences:
    """The strongest occurrences of each concept, at most one per window.

    Args:
        num_concepts: C.
        num_kept: N.
    """

    def __init__(self, num_concepts: int, num_kept: int) -> None:
        self.values = torch.full((num_concepts, num_kept), -torch.inf)
        """[C, N], strongest first, which rank the occurrences; -inf for missing ones."""
        self.windows = torch.full((num_concepts, num_kept), -1)
        self.positions = torch.full((num_concepts, num_kept), -1)
        self.counts = torch.zeros(num_concepts, dtype=torch.long)
        """All occurrences of each concept, also those not kept."""
        self.around = torch.zeros(num_concepts, num_kept, TOKENS_BEFORE + 1 + TOKENS_AFTER)
        """[C, N, E]: activations from `TOKENS_BEFORE` before to `TOKENS_AFTER` after; 0 where it does not occur."""

    def add(
        self,
        window_ids: Int64[Tensor, " B"],
        concepts: Tensor,
        values: Tensor,
        present: Tensor,
        ranks: Tensor | None = None,
    ) -> None:
        """Take a batch into account.

        Args:
            window_ids: of the batch; the first of equal values wins.
            concepts: [B, T, K]; those present at one token differ.
            values: [B, T, K], activations.
            present: [B, T, K], whether the concept occurs.
            ranks: [B, T, K], which rank the occurrences; None: the values.
        """
        concepts, values, present = concepts.cpu(), values.float().cpu(), present.cpu()
        row, position, slot = present.nonzero(as_tuple=True)
        concept, value = concepts[row, position, slot], (values if ranks is None else ranks)[row, position, slot]
        C, T = len(self.counts), concepts.shape[1]
        keys, by_key = ((row * T + position) * C + concept).sort()
        sorted_values = values[row, position, slot][by_key]
        self.counts += torch.bincount(concept, minlength=len(self.counts))
        better = value > self.values[concept, -1]
        row, position, concept, value = row[better], position[better], concept[better], value[better]
        # The strongest of each (concept, window).
        order = _ranked(concept * len(window_ids) + row, value)
        first = order[_rank_in_group((concept * len(window_ids) + row)[order]) == 0]
        row, position, concept, value = row[first], position[first], concept[first], value[first]

        def around(kept: Tensor) -> Tensor:
            at = position[kept].unsqueeze(-1) + _OFFSETS
            wanted = (row[kept].unsqueeze(-1) * T + at.clamp(0, T - 1)) * C + concept[kept].unsqueeze(-1)
            places = torch.searchsorted(keys, wanted).clamp(max=len(keys) - 1)
            return torch.where((keys[places] == wanted) & (at >= 0) & (at < T), sorted_values[places], 0.0)

        self._merge(concept, value, window_ids[row], position, around)

    def _merge(
        self, concept: Tensor, value: Tensor, window: Tensor, position: Tensor, around: Callable[[Tensor], Tensor]
    ) -> None:
        """Merge M occurrences into the rows of their concepts; `around` gives the excerpts of some of them."""
        touched, row = concept.unique(return_inverse=True)
        N = self.values.shape[1]
        old_row = torch.arange(len(touched)).repeat_interleave(N)
        rows = torch.cat([old_row, row])
        values = torch.cat([self.values[touched].flatten(), value])
        order = _ranked(rows, values)
        rank = _rank_in_group(rows[order])
        order, rank = order[rank < N], rank[rank < N]
        place = (touched[rows[order]], rank)
        for kept, new in ((self.windows, window), (self.positions, position)):
            kept[place] = torch.cat([kept[touched].flatten(), new])[order]
        is_new, excerpts = order >= len(old_row), self.around[touched].flatten(0, 1)
        kept_excerpts = excerpts[order.clamp(max=len(old_row) - 1)]
        kept_excerpts[is_new] = around(order[is_new] - len(old_row))
        self.around[place] = kept_excerpts
        self.values[place] = values[order]


@dataclass(frozen=True)
class Occurrences:
    """The result of one pass."""

    num_windows: int
    num_tokens: int
    strongest: dict[str, StrongestOccurrences]
    """By source, for the sources that were given."""
    histograms: dict[str, Histograms]
    """Of the activations, by source."""
    sample: StrongestOccurrences
    """Random occurrences of the first source; its values are random numbers."""
    token_counts: Int64[Tensor, " V"]
    """How often each token of the vocabulary was read."""
    activations: ActivationStatistics | None
    """Of the model's active concepts; None without a model."""
    quality: PredictionQuality | None
    """Predictions against labels; None without labels."""


@torch.no_grad()
def find_occurrences(
    model: CoCoMixForCausalLM | None,
    dataset: TokenDataset,
    *,
    extractor: ConceptExtractor | None,
    labels: ConceptDataset | None,
    num_kept: int,
    num_random: int,
    max_windows: int | None,
) -> Occurrences:
    """Read windows once, with the model and, if given, the labels and the autoencoder.

    Args:
        model: with a concept mixer; None: the latents of `extractor` alone.
        dataset: the split to read.
        extractor: teacher and autoencoder; gives latents, and labels unless `labels` is given.
        labels: of `dataset`; if given, only windows with labels are read.
        num_kept: occurrences to keep of each concept and source.
        num_random: random occurrences to keep of each concept, of the first source.
        max_windows: how many evenly spaced windows to read; None: all.
    """
    if model is None:
        assert extractor is not None
        C, device = extractor.sae.config.num_latents, extractor.teacher.model.device
    else:
        C, device = model.config.num_concepts, model.device
    names = ["sae"] if extractor else []
    if model is not None:
        names += [*(["label"] if extractor or labels else []), "prediction"]
    strongest = {name: StrongestOccurrences(C, num_kept) for name in names}
    histograms = {name: Histograms(C) for name in names}
    sample, generator = StrongestOccurrences(C, num_random), torch.Generator().manual_seed(0)
    recorder = None if model is None else ActivationRecorder(C, model.device)
    quality = PredictionQuality(model) if model is not None and (extractor or labels) else None
    token_counts = torch.zeros(dataset.vocab_size, dtype=torch.long)
    num_windows = 0

    def add(source: str, concepts: Tensor, values: Tensor, present: Tensor) -> None:
        strongest[source].add(window_ids, concepts, values, present)
        histograms[source].add(concepts[present].cpu(), values[present].float().cpu())
        if source == names[0]:
            sample.add(window_ids, concepts, values, present, torch.rand(concepts.shape, generator=generator))

    for ids, windows in read_batches(dataset, labels, max_windows):
        num_windows += len(ids)
        token_counts += torch.bincount(windows.input_ids.flatten(), minlength=len(token_counts))
        window_ids, windows = torch.from_numpy(ids), windows.to(device)
        kept = None
        if extractor is not None:
            h = extractor.teacher.residual(**windows.inputs())
            latents = extractor.sae.read(h, **windows.inputs())
            add("sae", latents.indices, latents.values, latents.values > 0)
            kept = extractor.sae.kept(h, **windows.inputs())
        if model is None or recorder is None:
            continue
        hidden, indices, values = predict(model, windows, recorder)
        present = torch.ones_like(indices, dtype=torch.bool)
        if kept is not None:
            present &= kept.unsqueeze(-1)  # elsewhere no label was learned
        add("prediction", indices, values, present)
        if quality is not None:
            scored = _labels(ids, windows, extractor, labels)
            add("label", scored.labels, scored.scores, scored.labels != IGNORED_LABEL)
            quality.add(hidden, indices, values, scored.labels.to(model.device))
    if quality is not None:
        quality.to_cpu()
    activations = None if recorder is None else recorder.statistics()
    num_tokens = int(token_counts.sum())
    return Occurrences(num_windows, num_tokens, strongest, histograms, sample, token_counts, activations, quality)


def predict(model: CoCoMixForCausalLM, windows: Windows, *edits: ConceptEdit) -> tuple[Tensor, Tensor, Tensor]:
    """The mixer's input [B, T, D] and its active concepts and values [B, T, K]; blocks above the mixer do not run."""
    adapter, T = model.adapter, windows.input_ids.shape[1]
    positions = (
        torch.arange(T, device=model.device).unsqueeze(0) if windows.position_ids is None else windows.position_ids
    )
    hidden = adapter.embed(adapter.token_embeddings(windows.input_ids), positions)
    hidden = adapter.run_blocks(
        hidden, 0, model.config.mixer.insertion, position_ids=positions, packed_positions=windows.position_ids
    )
    mixed = model.mixer(hidden, MixerInputs(edits=edits))
    return hidden, mixed.concept_indices, mixed.concept_values


def read_batches(
    dataset: TokenDataset, labels: ConceptDataset | None, max_windows: int | None
) -> Iterator[tuple[np.ndarray, Windows]]:
    """Evenly spaced windows and their indices in the split; with labels, only windows that have them."""
    num_windows = dataset.num_windows if labels is None else labels.num_windows
    count = num_windows if max_windows is None else min(max_windows, num_windows)
    chosen = np.arange(count) * num_windows // count
    with ProgressLine("reading concepts", count * dataset.context_length) as progress:
        for ids in np.array_split(chosen, -(-count // windows_per_batch(dataset))):
            yield ids, dataset.windows(ids)
            progress.advance(len(ids) * dataset.context_length)


def _labels(
    ids: np.ndarray, windows: Windows, extractor: ConceptExtractor | None, labels: ConceptDataset | None
) -> ScoredLabels:
    """Labels and their scores; the scores are 1 if the concept dataset has none."""
    if labels is None:
        assert extractor is not None
        with torch.enable_grad():
            return extractor.scored(**windows.inputs())
    concepts = labels.labels(ids)
    scores = labels.scores(ids) if labels.settings["scores"] else torch.ones(concepts.shape)
    return ScoredLabels(concepts, scores)


def _ranked(group: Tensor, value: Tensor) -> Tensor:
    """Order by group, strongest first; equal values keep their order."""
    by_value = value.argsort(descending=True, stable=True)
    return by_value[group[by_value].argsort(stable=True)]


def _rank_in_group(sorted_groups: Tensor) -> Tensor:
    """Rank of each item within its run of equal groups, from 0."""
    places = torch.arange(len(sorted_groups))
    is_first = torch.ones_like(sorted_groups, dtype=torch.bool)
    is_first[1:] = sorted_groups[1:] != sorted_groups[:-1]
    return places - torch.where(is_first, places, 0).cummax(0).values
