"""Causal probes of whether the concept stream is used.

Each probe replaces W_compress @ TopK(z), the part of the concept vector that concepts determine, and reports how much the
validation loss changes. A model whose stream can be shuffled without loss does not use concepts.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from cocomix.base.errors import CocomixError
from cocomix.data import IGNORED_LABEL
from cocomix.data.token_dataset import TokenDataset
from cocomix.labels.attribution import ConceptExtractor
from cocomix.mixers.edits import ConceptEdit, concept_edits
from cocomix.modeling.losses import next_token_losses
from cocomix.modeling.model import CoCoMixForCausalLM

# Shapes: B batch, T tokens, K active concepts, D width, A labels per token.

BATCH_SIZE = 32
SEED = 0


class Zero(ConceptEdit):
    """Sets the values of all concepts to zero."""

    def edit_active(self, indices: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        return indices, torch.zeros_like(values)


class Mean(ConceptEdit):
    """Gives every position the mean vector.

    Args:
        mean: [D], mean vector over the evaluated tokens.
    """

    def __init__(self, mean: Tensor) -> None:
        self.mean = mean

    def edit_vectors(self, vectors: Tensor) -> Tensor:
        return self.mean.expand_as(vectors)


class ShuffleBatch(ConceptEdit):
    """Gives every sequence the concepts of the next sequence in its batch, position by position.

    Batches are mixed, so the next sequence is usually from another document.
    """

    def edit_active(self, indices: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        return indices.roll(1, dims=0), values.roll(1, dims=0)


class ShufflePosition(ConceptEdit):
    """Gives every position the concepts of a random earlier position in its sequence; the first keeps its own.

    Later positions are excluded because their concepts depend on the token to be predicted.
    """

    def __init__(self, seed: int = SEED) -> None:
        self.generator = torch.Generator().manual_seed(seed)

    def edit_active(self, indices: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        B, T, K = indices.shape
        earlier = (torch.rand(B, T, generator=self.generator) * torch.arange(T)).long()  # in [0, t)
        source = earlier.unsqueeze(-1).expand(B, T, K).to(indices.device)
        return indices.gather(1, source), values.gather(1, source)


class Oracle(ConceptEdit):
    """Replaces the strongest predictions by the teacher's labels, which take over their values.

    Labels among the other active concepts are removed there, so that none counts twice. A position with fewer labels keeps
    more of its predictions.
    """

    def __init__(self) -> None:
        self.labels: Tensor | None = None

    def edit_active(self, indices: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        assert self.labels is not None
        K, A = indices.shape[-1], self.labels.shape[-1]
        labels = F.pad(self.labels, (0, K - A), value=IGNORED_LABEL)  # one for each active concept
        is_replaced = labels != IGNORED_LABEL
        is_label = (indices.unsqueeze(-1) == self.labels.unsqueeze(-2)).any(-1)
        return torch.where(is_replaced, labels, indices), values.masked_fill(is_label & ~is_replaced, 0)


class _Recorder(ConceptEdit):
    """Sums the concept vectors without changing them."""

    def __init__(self) -> None:
        self.total: Tensor | float = 0.0
        self.count = 0

    def edit_vectors(self, vectors: Tensor) -> Tensor:
        self.total = self.total + vectors.double().sum((0, 1))
        self.count += vectors.shape[0] * vectors.shape[1]
        return vectors

    def mean(self) -> Tensor:
        assert isinstance(self.total, Tensor)
        return (self.total / self.count).float()


@dataclass(frozen=True)
class ProbeResult:
    """The effect of a probe on the validation loss."""

    loss: float
    """Loss under the probe, in nats per token."""
    loss_delta: float
    """Change against the unmodified model, in nats per token; positive: the probe hurts."""
    standard_error: float | None
    """Standard error of the change over windows; None for a single window."""


@torch.no_grad()
def run_probes(
    model: CoCoMixForCausalLM,
    dataset: TokenDataset,
    extractor: ConceptExtractor | None = None,
    *,
    max_windows: int | None = None,
) -> dict[str, ProbeResult]:
    """Run all probes of a model with a concept mixer.

    Args:
        model: model to probe.
        dataset: split to evaluate on.
        extractor: teacher and autoencoder for the `oracle` probe; None: leave it out.
        max_windows: number of evenly spaced windows to evaluate on; None: all.

    Raises:
        CocomixError: the model mixes no concepts, or the autoencoder doesn't fit it.
    """
    if model.config.mixer.unsteerable:
        raise CocomixError(f"the model {model.config.mixer.unsteerable}: probes have nothing to change")
    if extractor is not None:
        C, A = extractor.sae.config.num_latents, extractor.config.num_labels
        if model.config.num_concepts != C:
            raise CocomixError(f"the model has {model.config.num_concepts} concepts, the autoencoder {C} latents")
        if model.config.num_active_concepts < A:
            raise CocomixError(
                f"the oracle probe needs {A} active concepts, but the model has {model.config.num_active_concepts}"
            )
    model.eval()
    recorder, oracle = _Recorder(), Oracle()
    base = _window_losses(model, dataset, max_windows, recorder, "loss without a probe")
    edits: dict[str, ConceptEdit] = {
        "zero": Zero(),
        "mean": Mean(recorder.mean()),
        "shuffle_batch": ShuffleBatch(),
        "shuffle_position": ShufflePosition(),
    }
    if extractor is not None:
        edits["oracle"] = oracle
    results = {}
    for name, edit in edits.items():
        labelling = extractor if edit is oracle else None
        losses = _window_losses(model, dataset, max_windows, edit, f"probe {name}", labelling)
        delta = losses - base
        error = float(delta.std()) / math.sqrt(len(delta)) if len(delta) > 1 else None
        results[name] = ProbeResult(float(losses.mean()), float(delta.mean()), error)
    return results


def _window_losses(
    model: CoCoMixForCausalLM,
    dataset: TokenDataset,
    max_windows: int | None,
    edit: ConceptEdit,
    description: str,
    extractor: ConceptExtractor | None = None,
) -> Tensor:
    """Mean loss of each window under an edit: [num_windows], float64."""
    parts = []
    for windows in dataset.batches(BATCH_SIZE, max_windows, mixed=True, description=description):
        windows = windows.to(model.device)
        if extractor is not None:
            assert isinstance(edit, Oracle)
            with torch.enable_grad():
                edit.labels = extractor(**windows.inputs())
        with concept_edits(model, edit):
            logits = model(**windows.inputs(), use_cache=False).logits
        parts.append(next_token_losses(logits, windows.input_ids).double().mean(-1))
    return torch.cat(parts)
