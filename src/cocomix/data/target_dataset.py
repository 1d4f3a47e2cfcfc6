"""Sampled distillation targets of the windows of a token dataset, row by row.

DIR/00000.parquet   one window per row: tokens, (T - 1) * K ids drawn from the teacher's prediction at each position except
                    the last; entropy, T - 1 float32, of these predictions, in nats
DIR/manifest.json   fingerprints of text, tokenizer, windows and teacher; draws, temperature, seed; checksums
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float, Int64
from torch import Tensor

from cocomix.base.kinds import DISTILLATION_TARGETS
from cocomix.data.shards import write_shard
from cocomix.data.sidecar import Sidecar
from cocomix.data.token_dataset import TokenDataset

# Shapes: B windows, T tokens, P = T - 1 positions with a next token, K draws per position.


@dataclass(frozen=True)
class SampledTargets:
    """Draws from a teacher's next-token distributions p, at all positions except the last."""

    tokens: Int64[Tensor, "B P K"]
    """Draws with repetition, in ascending order; their expected histogram is p."""
    entropy: Float[Tensor, "B P"]
    """Entropy of p, in nats."""

    def to(self, device: torch.device | str) -> SampledTargets:
        """The targets on another device."""
        return SampledTargets(self.tokens.to(device), self.entropy.to(device))


class TargetDataset(Sidecar):
    """Draws for the first `num_windows` training windows of a token dataset, from the folder that `distill-targets` made.

    Arguments and errors are those of `Sidecar`.
    """

    kind, content, remedy = DISTILLATION_TARGETS, "distillation targets", "draw targets"

    def __init__(self, path: Path | str, tokens: TokenDataset) -> None:
        super().__init__(path, tokens)
        self.temperature = float(self.settings["temperature"])
        self.num_samples = int(self.settings["num_samples"])

    def targets(self, windows: Sequence[int] | np.ndarray) -> SampledTargets:
        """Draws and entropies of the given windows."""
        flat = torch.from_numpy(self._table.take("tokens", windows))
        entropy = torch.from_numpy(self._table.take("entropy", windows, dtype=np.float32))
        return SampledTargets(flat.view(len(flat), self._context_length - 1, self.num_samples), entropy)


def write_targets(folder: Path, index: int, targets: SampledTargets, vocab_size: int) -> None:
    """Write one shard of targets, with 2 bytes per draw if `vocab_size` allows it."""
    dtype = np.uint16 if vocab_size <= 2**16 else np.int32
    columns = {
        "tokens": targets.tokens.flatten(1).numpy().astype(dtype),
        "entropy": targets.entropy.numpy(),
    }
    write_shard(folder, index, columns)
