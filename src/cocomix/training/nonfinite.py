"""What a step's values are: kept on the device until a line is written, and watched for the first that is not finite."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class StepValues:
    """Losses and gradient norms of one step."""

    step: int
    """0-based."""
    values: dict[str, float]

    @property
    def is_finite(self) -> bool:
        return all(map(math.isfinite, self.values.values()))


class StepWatch:
    """Collects the values of steps without waiting for the device.

    `found_inf` is 1.0 on the device from the first step on whose values are not all finite, and 0.0 before: given to the
    optimizer under that name, it keeps the weights as they were before that step until the host gets to know.
    """

    def __init__(self, device: torch.device) -> None:
        self.found_inf = torch.zeros((), device=device)
        self._steps: list[tuple[int, tuple[str, ...], Tensor]] = []

    def add(self, step: int, values: Mapping[str, Tensor]) -> None:
        """Keep the values of a 0-based step: scalars, equal on all ranks."""
        stacked = torch.stack([value.float() for value in values.values()])
        self.found_inf = torch.maximum(self.found_inf, 1.0 - stacked.isfinite().all().float())
        self._steps.append((step, tuple(values), stacked))

    def read(self) -> list[StepValues]:
        """The steps since the last time, in one transfer."""
        if not self._steps:
            return []
        rows = torch.stack([stacked for _, _, stacked in self._steps]).tolist()
        found = [
            StepValues(step, dict(zip(names, row, strict=True)))
            for (step, names, _), row in zip(self._steps, rows, strict=True)
        ]
        self._steps.clear()
        return found
