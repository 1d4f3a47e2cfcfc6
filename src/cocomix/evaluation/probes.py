"""Causal probes: is the concept stream used?

Each probe replaces W_compress @ TopK(z), the part of the concept vector that concepts determine, and reports how much the
validation loss changes. A model whose stream can be shuffled for free is not using concepts.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from cocomix.base.errors import CocomixError
from cocomix.data import IGNORED_LABEL
from cocomix.data.token_dataset import TokenDataset
from cocomix.labels.attribution import ConceptExtractor
from cocomix.mixers.edits import ConceptEdit, concept_edits
from cocomix.modeling.losses import next_token_losses
from cocomix.modeling.model import CoCoMixForCausalLM

# Shapes: B batch, T tokens, K active concepts, D width, A labels a token.

BATCH_SIZE = 32
SEED = 0


class Zero(ConceptEdit):
    """No concept is active."""

    def edit_active(self, indices: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        return indices, torch.zeros_like(values)


class Mean(ConceptEdit):
    """Every position gets the mean vector.

    Args:
        mean: [D], over the evaluated tokens.
    """

    def __init__(self, mean: Tensor) -> None:
        self.mean = mean

    def edit_vectors(self, vectors: Tensor) -> Tensor:
        return self.mean.expand_as(vectors)


class ShuffleBatch(ConceptEdit):
    """Every sequence gets the concepts of the next sequence of its batch, position by position.

    Batches are mixed, so that the next sequence is of another document as a rule.
    """

    def edit_active(self, indices: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        return indices.roll(1, dims=0), values.roll(1, dims=0)


class ShufflePosition(ConceptEdit):
    """Every position gets the concepts of a random earlier one of its sequence, the first its own.

    Only earlier ones: a later position's concepts know the token that is to be predicted.
    """

    def __init__(self, seed: int = SEED) -> None:
        self.generator = torch.Generator().manual_seed(seed)

    def edit_active(self, indices: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        B, T, K = indices.shape
        earlier = (torch.rand(B, T, generator=self.generator) * torch.arange(T)).long()  # in [0, t)
        source = earlier.unsqueeze(-1).expand(B, T, K).to(indices.device)
        return indices.gather(1, source), values.gather(1, source)


class Oracle(ConceptEdit):
    """The teacher's own labels in place of the strongest predictions, whose values they take.

    Where the labels are among the other active concepts already, these are removed, so that none counts twice. Positions
    without labels are left alone.
    """

    def __init__(self) -> None:
        self.labels: Tensor | None = None

    def edit_active(self, indices: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        assert self.labels is not None
        labels = self.labels
        valid = (labels != IGNORED_LABEL).all(-1, keepdim=True)
        A = labels.shape[-1]
        is_label = (indices.unsqueeze(-1) == labels.unsqueeze(-2)).any(-1)
        rest = torch.where(is_label, torch.zeros_like(values), values)[..., A:]
        oracle_indices = torch.cat([labels.clamp(min=0), indices[..., A:]], -1)
        oracle_values = torch.cat([values[..., :A], rest], -1)
        return torch.where(valid, oracle_indices, indices), torch.where(valid, oracle_values, values)


class _Recorder(ConceptEdit):
    """Sums the vectors that pass, and changes nothing."""

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
    """What a probe did to the validation loss."""

    loss: float
    """Nats a token under the probe."""
    loss_delta: float
    """Change against the untouched model; positive: the probe hurts."""
    standard_error: float | None
    """Of the change, over windows; None with a single one."""


@torch.no_grad()
def run_probes(
    model: CoCoMixForCausalLM,
    dataset: TokenDataset,
    extractor: ConceptExtractor | None = None,
    *,
    max_windows: int | None = None,
) -> dict[str, ProbeResult]:
    """All probes of a model with a concept mixer.

    Args:
        model: student.
        dataset: what to evaluate on.
        extractor: teacher and autoencoder, for `oracle`; left out without.
        max_windows: evaluate on so many evenly spaced windows; None: all.
    """
    if not model.config.mixer.is_steerable:
        raise CocomixError("probes need a model whose concepts are mixed into its hidden states")
    if extractor is not None:
        C, A = extractor.sae.config.num_latents, extractor.config.num_labels
        if model.config.num_concepts != C:
            raise CocomixError(f"the model has {model.config.num_concepts} concepts, the autoencoder {C} latents")
        if model.config.num_active_concepts < A:
            raise CocomixError(
                f"the oracle probe needs {A} active concepts, the model has {model.config.num_active_concepts}"
            )
    model.eval()
    recorder, oracle = _Recorder(), Oracle()
    base = _window_losses(model, dataset, max_windows, recorder)
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
        losses = _window_losses(model, dataset, max_windows, edit, extractor if edit is oracle else None)
        delta = losses - base
        error = float(delta.std()) / math.sqrt(len(delta)) if len(delta) > 1 else None
        results[name] = ProbeResult(float(losses.mean()), float(delta.mean()), error)
    return results


def _window_losses(
    model: CoCoMixForCausalLM,
    dataset: TokenDataset,
    max_windows: int | None,
    edit: ConceptEdit,
    extractor: ConceptExtractor | None = None,
) -> Tensor:
    """Mean loss of each window under an edit: [num_windows], float64."""
    parts = []
    description = f"probe: {type(edit).__name__.strip('_').lower()}"
    for windows in dataset.batches(BATCH_SIZE, max_windows, mixed=True, description=description):
        if extractor is not None:
            assert isinstance(edit, Oracle)
            with torch.enable_grad():
                edit.labels = extractor(**windows.inputs())
        with concept_edits(model, edit):
            logits = model(**windows.inputs(), use_cache=False).logits
        parts.append(next_token_losses(logits, windows.input_ids).double().mean(-1))
    return torch.cat(parts)
