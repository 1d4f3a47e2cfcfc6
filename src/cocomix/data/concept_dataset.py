"""The concept dataset: labels of the windows of a token dataset, row by row.

DIR/00000.parquet   one window per row: labels, T * A concept indices, `num_concepts` in place of a missing one; and, if
                    requested, scores, T * A float32, zero where there is no label
DIR/manifest.json   fingerprints of text, tokenizer, windows, teacher and SAE; the hook, attribution settings, checksums
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float, Int64
from torch import Tensor

from cocomix.base.errors import CocomixError
from cocomix.base.kinds import CONCEPT_DATASET
from cocomix.data import IGNORED_LABEL
from cocomix.data.shards import write_shard
from cocomix.data.sidecar import Sidecar
from cocomix.data.token_dataset import TokenDataset


class ConceptDataset(Sidecar):
    """Concept labels of the first `num_windows` training windows of a token dataset, from the folder that `extract` made.

    Arguments and errors are those of `Sidecar`. `inputs` holds the fingerprints that a run on these labels depends on.
    """

    kind, content, remedy = CONCEPT_DATASET, "labels", "extract labels"

    def __init__(self, path: Path | str, tokens: TokenDataset) -> None:
        super().__init__(path, tokens)
        self.inputs = {"labels": self.fingerprint}
        self.num_concepts = int(self.manifest.facts["num_concepts"])
        self.num_labels = int(self.settings["attribution"]["num_labels"])

    def labels(self, windows: Sequence[int] | np.ndarray) -> Int64[Tensor, "B T A"]:
        """Labels of the given windows, -100 in place of each missing one."""
        flat = torch.from_numpy(self._table.take("labels", windows))
        labels = flat.view(len(flat), self._context_length, self.num_labels)
        return labels.masked_fill(labels == self.num_concepts, IGNORED_LABEL)

    def scores(self, windows: Sequence[int] | np.ndarray) -> Float[Tensor, "B T A"]:
        """Scores of the labels of the given windows.

        Raises:
            CocomixError: the labels were extracted without `--scores`.
        """
        if not self.settings["scores"]:
            raise CocomixError(f"{self.path} holds no scores; extract it with --scores")
        flat = torch.from_numpy(self._table.take("scores", windows, dtype=np.float32))
        return flat.view(len(flat), self._context_length, self.num_labels)


def write_labels(
    folder: Path,
    index: int,
    labels: Int64[Tensor, "B T A"],
    num_concepts: int,
    scores: Float[Tensor, "B T A"] | None = None,
) -> None:
    """Write one shard of labels, -100 in place of each missing one, with 2 bytes per label if `num_concepts` allows it."""
    dtype = np.uint16 if num_concepts < 2**16 else np.int32
    stored = labels.masked_fill(labels == IGNORED_LABEL, num_concepts)
    columns = {"labels": stored.flatten(1).numpy().astype(dtype)}
    if scores is not None:
        columns["scores"] = scores.flatten(1).float().numpy()
    write_shard(folder, index, columns)
