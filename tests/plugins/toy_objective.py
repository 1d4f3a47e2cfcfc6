"""An objective of someone else's, with settings and data of its own: logits are kept small (a z-loss)."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor

from cocomix import CocomixError, Objective, register_objective
from cocomix.base import artifacts
from cocomix.data.token_dataset import TokenDataset
from cocomix.modeling.output import CoCoMixOutput
from cocomix.objectives.base import Batch, WindowData
from cocomix.objectives.config import ObjectiveConfig, RunSettings


@dataclass(frozen=True)
class LogitSizeConfig(ObjectiveConfig):
    """logsumexp(z)^2, times a number for each window."""

    importance: Path | None = None
    """JSON file with a number for each training window."""

    name: ClassVar[str] = "logit_size"

    def check(self, run: RunSettings) -> None:
        if self.weight and self.importance is None:
            raise CocomixError(
                "logit_size.weight is set, but no importance of the windows; give --logit-size.importance"
            )

    def open(self, run: RunSettings, data: TokenDataset) -> WindowData | None:
        if not self.weight or self.importance is None:
            return None
        numbers = torch.tensor(json.loads(self.importance.read_text()))
        fingerprint = artifacts.fingerprint_of_path(self.importance)
        return WindowData(
            "importance", len(numbers), lambda windows: numbers[list(windows)], {"importance": fingerprint}
        )


@register_objective
class LogitSize(Objective):
    """A z-loss."""

    Config: ClassVar[Any] = LogitSizeConfig
    name = "logit_size_loss"
    needs_logits = True

    @classmethod
    def memory_bytes(cls, config: Any, num_tokens: int, vocab_size: int) -> float:
        return 4 * vocab_size * num_tokens  # logits in float32

    def count(self, batch: Batch) -> Tensor:
        return torch.tensor(batch.windows.input_ids.numel())

    def total(self, batch: Batch, output: CoCoMixOutput) -> Tensor:
        assert output.logits is not None
        return (output.logits.float().logsumexp(-1) ** 2 * batch.extra["importance"].unsqueeze(-1)).sum()
