"""How well a model predicts its concepts: precision, recall and calibration against labels.

The concept loss is a cross-entropy with a token's A labels of weight 1/A each, so the model's probability that concept c is a
label is A * softmax(z)_c, at most 1. Calibration compares that probability with how often c is a label.
"""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from cocomix.data import IGNORED_LABEL
from cocomix.modeling.model import CoCoMixForCausalLM

#: Elements of one chunk's logits: 64 MB in float32.
CHUNK_ELEMENTS = 2**24

# Shapes: B windows, T tokens, N labelled tokens, n of a chunk, D width, C concepts, K active concepts, A labels a token.

#: Bins of the reliability table, finer for small probabilities, which are the most common.
EDGES = (0.0, 0.01, 0.03, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0)
RECALL_AT = (1, 2, 4, 8, 16, 32, 64, 128)


class PredictionQuality:
    """Counts that grow batch by batch.

    Args:
        model: with a concept mixer.
    """

    def __init__(self, model: CoCoMixForCausalLM) -> None:
        self.mixer = model.concept_mixer
        C, K = model.config.num_concepts, model.config.num_active_concepts
        self.num_tokens = 0
        """Labelled tokens."""
        self.num_labels = torch.zeros(C, dtype=torch.long)
        self.num_predicted = torch.zeros(C, dtype=torch.long)
        """Labelled tokens at which each concept is active."""
        self.num_hits = torch.zeros(C, dtype=torch.long)
        """Tokens at which a concept is active and a label."""
        self.mass = torch.zeros(C, dtype=torch.float64)
        """Sum of the model's probabilities."""
        self.hits_by_rank = torch.zeros(K, dtype=torch.long)
        """How many labels are the 1st, 2nd, ... strongest prediction."""
        # Active concepts in each bin: their number, the sum of their probabilities, and the number of labels among them.
        self.bins = torch.zeros(3, len(EDGES) - 1, dtype=torch.float64)
        self._move(model.device)

    def _move(self, device: torch.device) -> None:
        for name, value in vars(self).items():
            if isinstance(value, torch.Tensor):
                setattr(self, name, value.to(device))

    def to_cpu(self) -> None:
        """Move the counts off the model's device, once all is counted."""
        self._move(torch.device("cpu"))

    def add(
        self,
        hidden: Float[Tensor, "B T D"],
        indices: Int64[Tensor, "B T K"],
        values: Float[Tensor, "B T K"],
        labels: Int64[Tensor, "B T A"],
    ) -> None:
        """Count a batch; tokens without labels are skipped.

        Args:
            hidden: input of the mixer.
            indices: active concepts, strongest first.
            values: their raw logits.
            labels: -100 in place of each that is missing.
        """
        valid = (labels != IGNORED_LABEL).any(-1)
        labels, indices, values = labels[valid], indices[valid], values[valid]  # (N, A), (N, K), (N, K)
        x = self.mixer.normalize(hidden)[0].view_as(hidden)[valid]
        num_labels, C = (labels != IGNORED_LABEL).sum(-1, keepdim=True), len(self.num_labels)
        is_label = (indices.unsqueeze(-1) == labels.unsqueeze(-2)).any(-1)
        self.num_tokens += len(labels)
        self.num_labels += torch.bincount(labels[labels != IGNORED_LABEL], minlength=C)
        self.num_predicted += torch.bincount(indices.flatten(), minlength=C)
        self.num_hits += torch.bincount(indices[is_label], minlength=C)
        self.hits_by_rank += is_label.sum(0)
        log_partition = self._add_mass(x, num_labels)
        probability = (num_labels * (values - log_partition.unsqueeze(-1)).exp()).clamp(max=1).flatten().double()
        edges = torch.tensor(EDGES[1:-1], dtype=torch.float64, device=probability.device)
        bins = torch.bucketize(probability, edges, right=True)
        counted = torch.stack([torch.ones_like(probability), probability, is_label.flatten().double()])
        self.bins.index_add_(1, bins, counted)

    def _add_mass(self, x: Float[Tensor, "N D"], num_labels: Int64[Tensor, "N 1"]) -> Float[Tensor, " N"]:
        """Add the probabilities of all concepts; returns log(sum(exp(z))) of each token."""
        log_partitions = []
        size = max(1, CHUNK_ELEMENTS // len(self.mass))
        for rows, numbers in zip(x.split(size), num_labels.split(size), strict=True):
            z = torch.addmm(self.mixer.head_bias, rows, self.mixer.head_weight.t()).float()  # (n, C)
            log_partition = z.logsumexp(-1)
            log_partitions.append(log_partition)
            self.mass += (z - log_partition.unsqueeze(-1)).exp_().mul_(numbers).clamp_(max=1).sum(0)
        return torch.cat(log_partitions)

    def precision(self) -> Float[Tensor, " C"]:
        """Share of the tokens where a concept is active that have it as label; nan where it never is."""
        return self.num_hits / self.num_predicted

    def recall(self) -> Float[Tensor, " C"]:
        """Share of the tokens that have a concept as label where it is active; nan where it never is a label."""
        return self.num_hits / self.num_labels

    def summary(self) -> dict[str, Any]:
        """Numbers of all concepts together."""
        total, K = int(self.num_labels.sum()), len(self.hits_by_rank)
        hits = self.hits_by_rank.cumsum(0)
        ks = sorted({k for k in RECALL_AT if k < K} | {K})
        count, mass, labels = self.bins
        bins = [
            {
                "from": EDGES[i],
                "to": EDGES[i + 1],
                "num_predictions": int(count[i]),
                "mean_probability": float(mass[i] / count[i]) if count[i] else None,
                "label_rate": float(labels[i] / count[i]) if count[i] else None,
            }
            for i in range(len(count))
        ]
        return {
            "num_labelled_tokens": self.num_tokens,
            "recall_at": {str(k): int(hits[k - 1]) / max(total, 1) for k in ks},
            "precision_at": {str(k): int(hits[k - 1]) / max(self.num_tokens * k, 1) for k in ks},
            "reliability": bins,
            "calibration_error": float((mass - labels).abs().sum() / count.sum().clamp(min=1)),
        }
