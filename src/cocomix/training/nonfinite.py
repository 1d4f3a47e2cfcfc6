"""Losses and gradient norms of steps: kept on the device until they are logged, and checked to be finite."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class StepValues:
    """Losses and gradient norms of one step, by name."""

    step: int
    """0-based."""
    values: dict[str, float]

    @property
    def is_finite(self) -> bool:
        return all(map(math.isfinite, self.values.values()))


class StepWatch:
    """Collects the values of steps without waiting for the device.

    `found_inf` is a float32 scalar on the device: 0.0 until a step has a value that is not finite, then 1.0. Set as the
    optimizer's `found_inf`, it freezes the weights as they were before that step until the host reads the values.
    """

    def __init__(self, device: torch.device) -> None:
        self.found_inf = torch.zeros((), device=device)
        self._steps: list[tuple[int, tuple[str, ...], Tensor]] = []

    def add(self, step: int, values: Mapping[str, Tensor]) -> None:
        """Store the values of a 0-based step: scalars, equal on all ranks."""
        stacked = torch.stack([value.float() for value in values.values()])
        self.found_inf = torch.maximum(self.found_inf, 1.0 - stacked.isfinite().all().float())
        self._steps.append((step, tuple(values), stacked))

    def read(self) -> list[StepValues]:
        """Values of the steps since the last call, in one transfer from the device."""
        if not self._steps:
            return []
        # One list, because steps after an objective's end have fewer values.
        values = iter(torch.cat([stacked for _, _, stacked in self._steps]).tolist())
        steps = [StepValues(step, {name: next(values) for name in names}) for step, names, _ in self._steps]
        self._steps.clear()
        return steps
