"""Windows of a token dataset with everything that a run learns about them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from cocomix.data.token_dataset import TokenDataset
from cocomix.objectives.base import Batch, WindowData


class Batches:
    """What one forward pass reads.

    Args:
        data: the windows.
        more: what objectives read beside the tokens.

    `inputs` are the fingerprints that a run depends on; `num_windows` windows have all that is asked for.
    """

    def __init__(self, data: TokenDataset, more: Sequence[WindowData] = ()) -> None:
        self.data, self.more = data, {part.name: part for part in more}
        self.num_windows = min([data.num_windows, *(part.num_windows for part in more)])
        self.inputs: dict[str, Any] = {"data": data.fingerprint, "labels": None, "distillation_targets": None}
        for part in more:
            self.inputs |= part.inputs

    def at(self, windows: Sequence[int] | np.ndarray) -> Batch:
        """The given windows."""
        return Batch(self.data.windows(windows), {name: part.read(windows) for name, part in self.more.items()})
