"""Sampled distillation targets of the windows of a token dataset, row by row.

DIR/00000.parquet   tokens, one window a row: (T - 1) * K ids drawn from the teacher's prediction at each position but the
                    last; entropy: T - 1 float32, of that prediction, in nats
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

from cocomix.base import artifacts
from cocomix.base.errors import CocomixError
from cocomix.base.kinds import DISTILLATION_TARGETS
from cocomix.data.shards import WindowTable, write_shard
from cocomix.data.token_dataset import TokenDataset, difference

# Shapes: B windows, T tokens, P = T - 1 positions with a next token, K draws a position.


@dataclass(frozen=True)
class SampledTargets:
    """Draws from a teacher's next-token distributions p, of all positions but the last."""

    tokens: Int64[Tensor, "B P K"]
    """With repetition, in ascending order; their histogram has the mean p."""
    entropy: Float[Tensor, "B P"]
    """Of p, in nats."""

    def to(self, device: torch.device | str) -> SampledTargets:
        """The same on another device."""
        return SampledTargets(self.tokens.to(device), self.entropy.to(device))


class TargetDataset:
    """Draws for the first `num_windows` training windows of a token dataset.

    Args:
        path: folder made by `distill-targets`; every byte of it is checked.
        tokens: the token dataset that the targets must belong to.

    Raises:
        CocomixError: the targets were made for other tokens.
    """

    def __init__(self, path: Path | str, tokens: TokenDataset) -> None:
        path = Path(path)
        manifest = artifacts.read(path, DISTILLATION_TARGETS)
        other = difference(tokens.parts, manifest.settings["data"])
        if other is not None:
            raise CocomixError(
                f"the distillation targets in {path} belong to another token dataset than {tokens.path} (the {other} "
                "differs); draw targets for this one, or train on the dataset they were made for"
            )
        self.path = path
        self.fingerprint = manifest.fingerprint
        self.settings = manifest.settings
        self.temperature = float(manifest.settings["temperature"])
        self.num_samples = int(manifest.settings["num_samples"])
        self.num_windows = int(manifest.settings["num_windows"])
        self.flops_per_token = float(manifest.facts["flops_per_token"])
        self._context_length = tokens.context_length
        self._table = WindowTable(path, manifest.facts["num_shards"])

    def targets(self, windows: Sequence[int] | np.ndarray) -> SampledTargets:
        """Draws and entropies of the given windows."""
        flat = torch.from_numpy(self._table.take("tokens", windows))
        entropy = torch.from_numpy(self._table.take("entropy", windows, dtype=np.float32))
        return SampledTargets(flat.view(len(flat), self._context_length - 1, self.num_samples), entropy)

    def training_flops(self, num_tokens: int, num_windows: int) -> float:
        """What the draws cost in a run of `num_tokens` on `num_windows`: once a window, however often it is seen."""
        return min(num_tokens, num_windows * self._context_length) * self.flops_per_token


def write_targets(folder: Path, index: int, targets: SampledTargets, vocab_size: int) -> None:
    """Write one shard; 2 bytes a draw while the vocabulary allows it."""
    dtype = np.uint16 if vocab_size <= 2**16 else np.int32
    columns = {
        "tokens": targets.tokens.flatten(1).numpy().astype(dtype),
        "entropy": targets.entropy.numpy(),
    }
    write_shard(folder, index, columns)
