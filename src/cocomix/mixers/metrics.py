"""Metrics of a mixer between two lines of `metrics.jsonl`: counted on the device, and saved in checkpoints."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from jaxtyping import Float, Int64
from torch import Tensor, distributed

from cocomix.data import IGNORED_LABEL

# Shapes: B batch, T tokens, C concepts, K active concepts, A labels per token.

#: A concept is dead once it was active at no token for a tenth of the run, or for this many tokens.
MAX_DEAD_AFTER_TOKENS = 10_000_000


class MixerMetrics:
    """Counts nothing; subclasses do. With several ranks, call `merge` before `line` and before `state`."""

    def add(self, counts: Mapping[str, Tensor]) -> None:
        """Add the counters returned by `Mixer.counts`; nothing is read back from the device."""

    def merge(self, num_ranks: int = 1) -> None:
        """Sum the ranks' counters; afterwards all ranks hold the same values."""

    def line(self, num_tokens: int) -> dict[str, Float[Tensor, ""]]:
        """Values since the last line, after `num_tokens` tokens of the run; counting starts over."""
        return {}

    def state(self) -> dict[str, Int64[Tensor, "..."]]:
        """Tensors to save in a checkpoint; overwriting them in place restores it."""
        return {}


class ConceptMetrics(MixerMetrics):
    """Concept recall, label entropy and dead concepts between two lines of the metrics.

    With several ranks, call `merge` on all of them before `line` and before `state`.

    Args:
        num_concepts: C.
        dead_after_tokens: number of tokens without being active after which a concept is dead; before the run has seen that
            many, a concept that was never active is.
        has_labels: whether the run has labels; without them there is no recall and no label entropy.
        device: the student's device.
    """

    def __init__(
        self, num_concepts: int, dead_after_tokens: int, *, has_labels: bool, device: torch.device | str = "cpu"
    ) -> None:
        self.num_concepts, self.dead_after_tokens, self.has_labels = num_concepts, max(1, dead_after_tokens), has_labels
        # One tensor, for a single reduction: recalled labels, labels, then label and active counts of each concept.
        self._own = torch.zeros(2 + 2 * num_concepts, dtype=torch.long, device=device)
        self._merged = torch.zeros_like(self._own)
        self._tokens_since_active = torch.zeros(num_concepts, dtype=torch.long, device=device)
        self._num_tokens = torch.zeros((), dtype=torch.long, device=device)

    def add(self, counts: Mapping[str, Tensor]) -> None:
        """Add the counters returned by `Mixer.counts`; nothing is read back from the device."""
        if "active_counts" in counts:
            self._own += torch.cat([counts[name].reshape(-1) for name in _COUNTS])

    def merge(self, num_ranks: int = 1) -> None:
        """Sum the ranks' counters."""
        if num_ranks > 1:
            distributed.all_reduce(self._own)
        self._merged += self._own
        self._own.zero_()

    def line(self, num_tokens: int) -> dict[str, Float[Tensor, ""]]:
        """Values since the last line; counting starts over.

        Args:
            num_tokens: tokens that the run has seen so far.

        Returns:
            `concept_recall`, the share of labels that were among their position's active concepts; `label_entropy` of the
            histogram of labels, in nats (neither if no position had labels); and `dead_concepts`, as a share of C.
        """
        recalled, num_labels = self._merged[:2]
        label_counts, active_counts = self._merged[2:].view(2, self.num_concepts)
        num_new_tokens = num_tokens - self._num_tokens
        self._tokens_since_active = torch.where(active_counts > 0, 0, self._tokens_since_active + num_new_tokens)
        self._num_tokens.fill_(num_tokens)
        dead = self._tokens_since_active >= min(self.dead_after_tokens, num_tokens)
        values = {"dead_concepts": dead.float().mean()}
        if self.has_labels and num_labels > 0:
            values["concept_recall"] = recalled / num_labels
            values["label_entropy"] = torch.special.entr(label_counts / num_labels).sum()
        self._merged.zero_()
        return values

    def state(self) -> dict[str, Int64[Tensor, "..."]]:
        """Tensors to save in a checkpoint, equal on all ranks once merged; overwriting them in place restores it."""
        return {
            "counts": self._merged,
            "tokens_since_active": self._tokens_since_active,
            "num_tokens": self._num_tokens,
        }


_COUNTS = ("recalled_labels", "num_labels", "label_counts", "active_counts")


@torch.no_grad()
def concept_counts(
    output: Any, labels: Int64[Tensor, "B T A"] | None, num_concepts: int
) -> dict[str, Int64[Tensor, "..."]]:
    """Counters that one forward pass adds to `ConceptMetrics`; empty for a student without concepts."""
    active = output.concept_indices
    if active is None:
        return {}
    if labels is None:
        labels = active.new_full((*active.shape[:2], 1), IGNORED_LABEL)
    is_label = labels != IGNORED_LABEL
    is_recalled = (labels.unsqueeze(-1) == active.unsqueeze(-2)).any(-1) & is_label
    return {
        "recalled_labels": is_recalled.sum(),
        "num_labels": is_label.sum(),
        "label_counts": _histogram(labels.clamp(min=0), is_label, num_concepts),
        "active_counts": _histogram(active, torch.ones_like(active), num_concepts),
    }


def _histogram(indices: Tensor, weights: Tensor, num_concepts: int) -> Int64[Tensor, " C"]:
    # torch.bincount would wait for the device to find the largest index.
    counts = torch.zeros(num_concepts, dtype=torch.long, device=indices.device)
    return counts.scatter_add_(0, indices.reshape(-1), weights.reshape(-1).long())
