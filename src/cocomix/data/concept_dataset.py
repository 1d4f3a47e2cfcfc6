"""The concept dataset: labels of the windows of a token dataset, row by row.

DIR/00000.parquet   labels, one window a row: T * A concept indices, `num_concepts` where a position has none;
                    scores beside them if asked for: T * A float32, zero where there is no label
DIR/manifest.json   fingerprints of text, tokenizer, windows, teacher and SAE; the hook, attribution settings, checksums
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float, Int64
from torch import Tensor

from cocomix.base import artifacts
from cocomix.base.errors import CocomixError
from cocomix.base.kinds import CONCEPT_DATASET
from cocomix.base.labels import IGNORED_LABEL
from cocomix.data.shards import WindowTable, write_shard
from cocomix.data.token_dataset import TokenDataset, difference


class ConceptDataset:
    """Concept labels of the first `num_windows` training windows of a token dataset.

    Args:
        path: folder made by `extract`; every byte of it is checked.
        tokens: the token dataset that the labels must belong to.

    `inputs` are what a training run on these labels depends on.

    Raises:
        CocomixError: the labels were made for other tokens.
    """

    def __init__(self, path: Path | str, tokens: TokenDataset) -> None:
        path = Path(path)
        manifest = artifacts.read(path, CONCEPT_DATASET)
        other = difference(tokens.parts, manifest.settings["data"])
        if other is not None:
            raise CocomixError(
                f"the labels in {path} belong to another token dataset than {tokens.path} (the {other} differs); "
                "extract labels for this one, or train on the dataset they were made for"
            )
        self.path = path
        self.manifest = manifest
        self.fingerprint = manifest.fingerprint
        self.inputs = {"labels": manifest.fingerprint}
        self.settings = manifest.settings
        self.num_concepts = int(manifest.facts["num_concepts"])
        self.num_windows = int(manifest.settings["num_windows"])
        self.num_labels = int(manifest.settings["attribution"]["num_labels"])
        self.flops_per_token = float(manifest.facts["flops_per_token"])
        self._context_length = tokens.context_length
        self._table = WindowTable(path, manifest.facts["num_shards"])

    def labels(self, windows: Sequence[int] | np.ndarray) -> Int64[Tensor, "B T A"]:
        """Labels of the given windows, -100 where a position has none."""
        flat = torch.from_numpy(self._table.take("labels", windows))
        labels = flat.view(len(flat), self._context_length, self.num_labels)
        return labels.masked_fill(labels == self.num_concepts, IGNORED_LABEL)

    def scores(self, windows: Sequence[int] | np.ndarray) -> Float[Tensor, "B T A"]:
        """Scores of the labels; only where they were extracted with `--scores`."""
        if not self.settings["scores"]:
            raise CocomixError(f"{self.path} holds no scores; extract it with --scores")
        flat = torch.from_numpy(self._table.take("scores", windows, dtype=np.float32))
        return flat.view(len(flat), self._context_length, self.num_labels)

    def training_flops(self, num_tokens: int, num_windows: int) -> float:
        """What labels cost in a run of `num_tokens` on `num_windows`: once a window, however often it is seen."""
        return min(num_tokens, num_windows * self._context_length) * self.flops_per_token


def write_labels(
    folder: Path,
    index: int,
    labels: Int64[Tensor, "B T A"],
    num_concepts: int,
    scores: Float[Tensor, "B T A"] | None = None,
) -> None:
    """Write one shard; 2 bytes a label while the dictionary allows it."""
    dtype = np.uint16 if num_concepts < 2**16 else np.int32
    stored = labels.masked_fill(labels == IGNORED_LABEL, num_concepts)
    columns = {"labels": stored.flatten(1).numpy().astype(dtype)}
    if scores is not None:
        columns["scores"] = scores.flatten(1).float().numpy()
    write_shard(folder, index, columns)
