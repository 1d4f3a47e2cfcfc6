"""An objective of someone else's, with settings and data of its own: logits are kept small."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor

from cocomix import Objective, register_objective
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

    def settings(self, run: RunSettings) -> dict[str, Any]:
        return {"logit_size": {"weight": self.weight, "schedule": self.schedule}} if self.weight else {}

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

    def count(self, batch: Batch) -> Tensor:
        return torch.tensor(batch.windows.input_ids.numel())

    def total(self, batch: Batch, output: CoCoMixOutput) -> Tensor:
        assert output.logits is not None
        return (output.logits.float().logsumexp(-1) ** 2 * batch.extra["importance"].unsqueeze(-1)).sum()
