"""Windows of a token dataset, with the labels and targets that a run reads for them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from cocomix.data.token_dataset import TokenDataset
from cocomix.objectives.base import Batch, WindowData
from cocomix.objectives.config import steps_until


class Batches:
    """The source of a run's batches.

    Args:
        data: token dataset.
        more: data that objectives read besides the tokens.

    `inputs` holds the fingerprints that a run depends on; the first `num_windows` windows have all of the data.
    """

    def __init__(self, data: TokenDataset, more: Sequence[WindowData] = ()) -> None:
        self.data, self.more = data, {part.name: part for part in more}
        self.num_windows = min([data.num_windows, *(part.num_windows for part in more)])
        self.inputs: dict[str, Any] = {"data": data.fingerprint, "labels": None, "distillation_targets": None}
        for part in more:
            self.inputs |= part.inputs

    def at(self, windows: Sequence[int] | np.ndarray, step: int = 0, num_steps: int = 1) -> Batch:
        """The batch of the given windows, with the data that a 0-based step of a run still reads."""
        parts = [part for part in self.more.values() if step < steps_until(part.end, num_steps)]
        return Batch(self.data.windows(windows), {part.name: part.read(windows) for part in parts})
