"""The concept dataset: labels of the windows of a token dataset, row by row.

DIR/00000.parquet   labels, one window a row: T * A concept indices, `num_concepts` where a position has none
DIR/manifest.json   fingerprints of tokens, teacher and SAE, attribution settings, checksums
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Int64
from torch import Tensor

from cocomix.base import artifacts
from cocomix.base.errors import CocomixError
from cocomix.base.labels import IGNORED_LABEL
from cocomix.data.shards import WindowTable, write_shard
from cocomix.data.token_dataset import TokenDataset

KIND = "concept-dataset"


class ConceptDataset:
    """Concept labels of the first `num_windows` training windows of a token dataset.

    Args:
        path: folder made by `extract`; every byte of it is checked.
        tokens: the token dataset that the labels must belong to.

    Raises:
        CocomixError: the labels were made for other tokens.
    """

    def __init__(self, path: Path, tokens: TokenDataset) -> None:
        manifest = artifacts.read(path, KIND)
        if manifest.settings["data"] != tokens.fingerprint:
            raise CocomixError(
                f"the labels in {path} belong to another token dataset than {tokens.path}; "
                "extract labels for this one, or train on the dataset they were made for"
            )
        self.path = path
        self.fingerprint = manifest.fingerprint
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


def write_labels(folder: Path, index: int, labels: Int64[Tensor, "B T A"], num_concepts: int) -> None:
    """Write one shard; 2 bytes a label while the dictionary allows it."""
    dtype = np.uint16 if num_concepts < 2**16 else np.int32
    stored = labels.masked_fill(labels == IGNORED_LABEL, num_concepts)
    write_shard(folder, index, {"labels": stored.flatten(1).numpy().astype(dtype)})
