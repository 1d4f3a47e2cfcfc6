"""One pass over text: where each concept is strongest, how often it is there, and how well it is predicted.

A concept is there in three ways: its latent is active in the teacher's autoencoder (`sae`), it is among a token's labels
(`label`), and it is active in the model's mixture (`prediction`).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Int64
from torch import Tensor

from cocomix.base.labels import IGNORED_LABEL
from cocomix.base.progress import ProgressLine
from cocomix.data.concept_dataset import ConceptDataset
from cocomix.data.token_dataset import TokenDataset, Windows
from cocomix.labels.attribution import ConceptExtractor, ScoredLabels
from cocomix.mixers.base import MixerInputs
from cocomix.modeling.model import CoCoMixForCausalLM
from cocomix.sae.quality import windows_per_batch
from cocomix.steering.activations import ActivationRecorder
from cocomix.steering.concept_notes import ActivationStatistics
from cocomix.tools.inspect.prediction_quality import PredictionQuality
from cocomix.tools.inspect.strongest import StrongestOccurrences

# Shapes: B windows, T tokens, K active concepts, A labels a token, V vocabulary.


@dataclass(frozen=True)
class Occurrences:
    """What one pass found."""

    num_windows: int
    num_tokens: int
    strongest: dict[str, StrongestOccurrences]
    """By source; only sources that there are."""
    token_counts: Int64[Tensor, " V"]
    """How often each token of the vocabulary was read."""
    activations: ActivationStatistics
    """Of the model's active concepts."""
    quality: PredictionQuality | None
    """Of the predictions against the labels, where there are labels."""


@torch.no_grad()
def find_occurrences(
    model: CoCoMixForCausalLM,
    dataset: TokenDataset,
    *,
    extractor: ConceptExtractor | None,
    labels: ConceptDataset | None,
    num_kept: int,
    max_windows: int | None,
) -> Occurrences:
    """Read windows once with the model and, where there are any, the labels and the autoencoder.

    Args:
        model: with a concept mixer.
        dataset: the split to read.
        extractor: teacher and autoencoder; gives latents, and labels unless `labels` are given.
        labels: of `dataset`; only windows that have labels are read then.
        num_kept: occurrences to keep of each concept and source.
        max_windows: read so many evenly spaced windows; None: all.
    """
    C = model.config.num_concepts
    names = [*(["sae"] if extractor else []), *(["label"] if extractor or labels else []), "prediction"]
    strongest = {name: StrongestOccurrences(C, num_kept) for name in names}
    recorder = ActivationRecorder(C, model.config.hidden_size, model.device)
    quality = PredictionQuality(model) if extractor or labels else None
    token_counts = torch.zeros(dataset.vocab_size, dtype=torch.long)
    num_windows = 0
    for ids, windows in _batches(dataset, labels, max_windows):
        num_windows += len(ids)
        token_counts += torch.bincount(windows.input_ids.flatten(), minlength=len(token_counts))
        window_ids = torch.from_numpy(ids)
        if extractor is not None:
            latents = extractor.sae.encode(extractor.teacher.residual(**windows.inputs()))
            strongest["sae"].add(window_ids, latents.indices, latents.values, latents.values > 0)
        hidden, indices, values = _predict(model, windows, recorder)
        strongest["prediction"].add(window_ids, indices, values, torch.ones_like(indices, dtype=torch.bool))
        if quality is not None:
            scored = _labels(ids, windows, extractor, labels)
            strongest["label"].add(window_ids, scored.labels, scored.scores, scored.labels != IGNORED_LABEL)
            quality.add(hidden, indices, values, scored.labels)
    num_tokens = int(token_counts.sum())
    return Occurrences(num_windows, num_tokens, strongest, token_counts, recorder.statistics(), quality)


def _predict(
    model: CoCoMixForCausalLM, windows: Windows, recorder: ActivationRecorder
) -> tuple[Tensor, Tensor, Tensor]:
    """What enters the mixer [B, T, D], and the concepts and values [B, T, K] that it makes active; no block above it runs."""
    adapter, T = model.adapter, windows.input_ids.shape[1]
    positions = torch.arange(T).unsqueeze(0) if windows.position_ids is None else windows.position_ids
    hidden = adapter.embed(adapter.token_embeddings(windows.input_ids), positions)
    hidden = adapter.run_blocks(
        hidden, 0, model.config.insert_layer, position_ids=positions, packed_positions=windows.position_ids
    )
    mixed = model.mixer(hidden, MixerInputs(edits=(recorder,)))
    return hidden, mixed.concept_indices, mixed.concept_values


def _batches(
    dataset: TokenDataset, labels: ConceptDataset | None, max_windows: int | None
) -> Iterator[tuple[np.ndarray, Windows]]:
    """Evenly spaced windows, and their indices in the split; only those with labels if there are any."""
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
    """Labels with their scores, 1 where a concept dataset keeps none."""
    if labels is None:
        assert extractor is not None
        with torch.enable_grad():
            return extractor.scored(**windows.inputs())
    found = labels.labels(ids)
    scores = labels.scores(ids) if labels.settings["scores"] else torch.ones(found.shape)
    return ScoredLabels(found, scores)
