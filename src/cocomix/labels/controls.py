"""Controls: labels that should be worse than the true ones for any method that needs true concepts.

    random      labels of a random dictionary of the same shape (`attribution.py`): what any projection of the teacher gives
    shuffled    true labels permuted over the labelled positions of their window: its concepts, at the wrong tokens
    frequency   concepts drawn from the histogram of all true labels: how often each occurs, and nothing else

Each control is a pure function of a window's tokens, the settings and the seed, so that the same window gets the same labels
in any batch, shard or process. `shuffled` and `frequency` are made from finished labels, without a teacher.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Int64
from torch import Tensor

from cocomix.data import IGNORED_LABEL
from cocomix.data.concept_dataset import ConceptDataset
from cocomix.data.token_dataset import TokenDataset
from cocomix.labels.attribution import ScoredLabels
from cocomix.labels.config import AttributionConfig

# Shapes: B batch, T tokens, C concepts, A labels a token, n labelled positions of a window.

WINDOWS_PER_COUNT, WINDOWS_PER_PASS = 512, 16


class DerivedLabels:
    """The controls `shuffled` and `frequency`, made from finished labels.

    Args:
        data: the windows.
        source: concept dataset with the true labels; except for control and seed, its attribution settings hold here too.
        attribution: the control and its seed.
    """

    def __init__(self, data: TokenDataset, source: Path, attribution: AttributionConfig) -> None:
        self.data, self.control, self.seed = data, attribution.control, attribution.seed
        self.source = ConceptDataset(source, data)
        self.num_windows, self.num_concepts = self.source.num_windows, self.source.num_concepts
        self.flops_per_token = self.source.flops_per_token  # the true labels had to be computed
        self.settings: dict[str, Any] = {
            "labels": self.source.fingerprint,
            "attribution": self.source.settings["attribution"] | {"control": self.control, "seed": self.seed},
        }

    @cached_property
    def histogram(self) -> Int64[Tensor, " C"]:
        """How often each concept is a label of the source, over all its windows."""
        counts = torch.zeros(self.num_concepts, dtype=torch.long)
        for start in range(0, self.num_windows, WINDOWS_PER_COUNT):
            labels = self.source.labels(range(start, min(start + WINDOWS_PER_COUNT, self.num_windows)))
            counts += torch.bincount(labels[labels != IGNORED_LABEL], minlength=self.num_concepts)
        return counts

    def windows_that_fit(self) -> int:
        """Windows at a time; they take next to no memory."""
        return WINDOWS_PER_PASS

    def check(self) -> None:
        """Stored labels were checked when they were made."""

    def scored(self, windows: Sequence[int] | np.ndarray) -> ScoredLabels:
        """Labels, with scores of zero: nothing ranked them."""
        input_ids, labels = self.data.input_ids(windows), self.source.labels(windows)
        if self.control == "shuffled":
            derived = shuffle_labels(input_ids, labels, self.seed)
        else:
            derived = draw_labels(input_ids, labels, self.histogram, self.seed)
        return ScoredLabels(derived, torch.zeros(derived.shape))


def shuffle_labels(
    input_ids: Int64[Tensor, "B T"], labels: Int64[Tensor, "B T A"], seed: int
) -> Int64[Tensor, "B T A"]:
    """The labels of each window permuted over its labelled positions, those of one position together."""
    shuffled = labels.clone()
    for b, valid in enumerate((labels != IGNORED_LABEL).any(-1)):
        order = _generator(seed, input_ids[b]).permutation(int(valid.sum()))
        shuffled[b, valid] = labels[b, valid][torch.from_numpy(order)]
    return shuffled


def draw_labels(
    input_ids: Int64[Tensor, "B T"], labels: Int64[Tensor, "B T A"], histogram: Int64[Tensor, " C"], seed: int
) -> Int64[Tensor, "B T A"]:
    """As many different concepts as each position has labels, one after another, in proportion to `histogram`.

    Args:
        input_ids: the windows.
        labels: true labels; only how many each position has is used.
        histogram: how often each concept is a true label; as many occur as any position has labels.
        seed: of the draws.
    """
    cumulative = histogram.cumsum(0).numpy()
    drawn = labels.clone()
    for b, is_label in enumerate(labels != IGNORED_LABEL):
        valid = is_label.any(-1)
        n, A = int(valid.sum()), int(is_label.sum(-1).max())
        concepts = _draw(_generator(seed, input_ids[b]), cumulative, n, A)
        drawn[b, valid, :A] = torch.from_numpy(concepts).masked_fill(~is_label[valid, :A], IGNORED_LABEL)
    return drawn


def _draw(generator: np.random.Generator, cumulative: np.ndarray, n: int, A: int) -> np.ndarray:
    """[n, A] concepts; one that its row already has is drawn again."""
    concepts = np.empty((n, A), dtype=np.int64)
    for k in range(A):
        again = np.arange(n)
        while len(again):
            tickets = generator.integers(cumulative[-1], size=len(again))
            concepts[again, k] = np.searchsorted(cumulative, tickets, side="right")
            again = again[(concepts[again, :k] == concepts[again, k : k + 1]).any(-1)]
    return concepts


def _generator(seed: int, window: Int64[Tensor, " T"]) -> np.random.Generator:
    """Random numbers that depend on a window's tokens and not on its place."""
    digest = hashlib.sha256(window.numpy().astype("<i8").tobytes()).digest()
    return np.random.default_rng([seed, *np.frombuffer(digest, "<u4")])
