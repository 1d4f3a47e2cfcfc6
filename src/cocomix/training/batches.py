"""What one forward pass reads: windows, and what was computed about them beforehand."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Int64
from torch import Tensor

from cocomix.base import artifacts
from cocomix.base.errors import CocomixError
from cocomix.data.target_dataset import SampledTargets, TargetDataset
from cocomix.data.token_dataset import TokenDataset, Windows
from cocomix.training.config import TrainConfig
from cocomix.training.labels import ConceptLabels

# Shapes: B windows, T tokens, A labels a token.


@dataclass(frozen=True)
class Batch:
    """Some windows of a step."""

    windows: Windows
    concept_labels: Int64[Tensor, "B T A"] | None = None
    targets: SampledTargets | None = None

    def to(self, device: torch.device | str) -> Batch:
        """The same on another device."""
        windows, labels, targets = self.windows, self.concept_labels, self.targets
        positions = windows.position_ids
        return Batch(
            Windows(windows.input_ids.to(device), None if positions is None else positions.to(device)),
            None if labels is None else labels.to(device),
            None if targets is None else targets.to(device),
        )


class Batches:
    """Windows of a token dataset with everything that a run learns about them.

    Args:
        data: the windows.
        labels: their concepts, if the run has any.
        targets: stored draws from a teacher, if the run has any.

    `inputs` are the fingerprints that a run depends on; `num_windows` windows have all that is asked for.
    """

    def __init__(
        self, data: TokenDataset, labels: ConceptLabels | None = None, targets: TargetDataset | None = None
    ) -> None:
        self.data, self.labels, self.targets = data, labels, targets
        self.num_windows = min(part.num_windows for part in (data, labels, targets) if part is not None)
        self.inputs: dict[str, Any] = {
            "data": data.fingerprint,
            "labels": None,
            "distillation_targets": None if targets is None else targets.fingerprint,
            **({} if labels is None else labels.inputs),
        }

    def at(self, windows: Sequence[int] | np.ndarray) -> Batch:
        """The given windows."""
        return Batch(
            self.data.windows(windows),
            None if self.labels is None else self.labels.labels(windows),
            None if self.targets is None else self.targets.targets(windows),
        )


def distillation_targets(config: TrainConfig, data: TokenDataset) -> TargetDataset | None:
    """The stored targets that a run asks for.

    Raises:
        CocomixError: they belong to other tokens, another teacher or another temperature than the run names, or have no use.
    """
    settings = config.distillation
    if settings.targets is None:
        return None
    if not settings.weight:
        raise CocomixError("distillation.targets is given but distillation.weight is 0; set a weight or leave it out")
    targets = TargetDataset(settings.targets, data)
    if targets.temperature != settings.temperature:
        raise CocomixError(
            f"the targets in {settings.targets} were drawn at temperature {targets.temperature}, but "
            f"distillation.temperature is {settings.temperature}; set it to {targets.temperature}"
        )
    if config.teacher is not None and artifacts.fingerprint_of_path(config.teacher) != targets.settings["teacher"]:
        raise CocomixError(
            f"the targets in {settings.targets} were drawn from another teacher than {config.teacher}; name theirs, "
            "or draw new ones with `cocomix distill-targets`"
        )
    return targets
