"""A mixer and an objective of your own, which every command takes.

    cocomix --plugin examples/tutorials/change_the_method.py train --data DATA --labels LABELS \
        --student.mixer gate --sharpness.weight 0.01 --output runs/gate
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

import cocomix
from cocomix.mixers.concept import ConceptMixer
from cocomix.mixers.config import ConceptConfig
from cocomix.modeling.output import CoCoMixOutput
from cocomix.objectives.base import Batch
from cocomix.objectives.config import ObjectiveConfig


@dataclass(frozen=True)
class GateConfig(ConceptConfig):
    """The concept mixer's settings, with another name and default."""

    mixer: str = "gate"
    mixing: str = "add"  # no extra positions


@cocomix.register_mixer
class GateMixer(ConceptMixer):
    """Predicts and compresses as CoCoMix does; a gate for each token decides how much of the vector enters."""

    Config: ClassVar[Any] = GateConfig

    def __init__(self, config: GateConfig, hidden_size: int) -> None:
        super().__init__(config, hidden_size)
        self.gate = nn.Parameter(torch.empty(hidden_size))

    def reset_parameters(self, std: float) -> None:
        super().reset_parameters(std)
        nn.init.zeros_(self.gate)

    def mix(self, hidden: Tensor, vectors: Tensor) -> Tensor:
        """Hidden states and vectors, [B, T, D] each, to hidden states."""
        return hidden + (hidden @ self.gate).sigmoid().unsqueeze(-1) * vectors


@dataclass(frozen=True)
class SharpnessConfig(ObjectiveConfig):
    """Weight and schedule are there already; this objective has nothing else to set."""

    name: ClassVar[str] = "sharpness"


@cocomix.register_objective
class Sharpness(cocomix.Objective):
    """Keeps the next token's logits small: the mean of logsumexp(z)^2, a z-loss."""

    Config: ClassVar[Any] = SharpnessConfig
    name = "sharpness_loss"  # in metrics.jsonl
    needs_logits = True

    @classmethod
    def memory_bytes(cls, config: Any, num_tokens: int, vocab_size: int) -> float:
        return 4 * vocab_size * num_tokens  # float32 logits, which `cocomix plan` then counts

    def count(self, batch: Batch) -> Tensor:
        return torch.tensor(batch.windows.input_ids.numel())

    def total(self, batch: Batch, output: CoCoMixOutput) -> Tensor:
        assert output.logits is not None
        return (output.logits.float().logsumexp(-1) ** 2).sum()
