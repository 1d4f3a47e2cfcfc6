"""Is a finished concept dataset what it says? Every byte, the inputs, and the labels of some windows computed again."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from cocomix.base import artifacts
from cocomix.base.errors import CocomixError
from cocomix.base.progress import say
from cocomix.data.concept_dataset import ConceptDataset
from cocomix.data.token_dataset import TokenDataset
from cocomix.labels.config import AttributionConfig
from cocomix.labels.label_sources import TeacherLabels

NUM_BATCHES = 4
#: Another processor or library rounds differently, and nearly equal scores change places; another teacher changes most.
MAX_SHARE_OF_OTHER_LABELS = 0.01


def verify(
    path: Path, data: TokenDataset, teacher: Path | None, sae: Path | None, layer: int | None
) -> artifacts.Manifest:
    """Check a concept dataset.

    Args:
        path: its folder.
        data: the token dataset it should belong to.
        teacher: with `sae`, also compare these and compute the labels of evenly spaced batches again.
        sae: the teacher's dictionary.
        layer: needed where the dictionary does not say its own.

    Raises:
        CocomixError: a file is damaged, an input is another, or labels differ; the message names which.
    """
    stored = ConceptDataset(path, data)
    say(f"{path}: every byte is as written, and the text, tokenizer and windows are those of {data.path}")
    if teacher is not None and sae is not None:
        if "labels" in stored.settings:
            raise CocomixError(
                f"{path} is a control made from other labels; verify those with a teacher, and this without one"
            )
        source = TeacherLabels(data, teacher, sae, layer, AttributionConfig(**stored.settings["attribution"]))
        for name in ("teacher", "sae", "layer"):
            if source.settings[name] != stored.settings[name]:
                raise CocomixError(f"{path} was made with another {name} than the given one")
        _compare(path, stored, source)
    return stored.manifest


def _compare(path: Path, stored: ConceptDataset, source: TeacherLabels) -> None:
    """Compute whole batches again, cut as they were, so that on the same machine even the rounding is the same."""
    size = int(stored.settings["batch_size"])
    starts = np.unique(np.linspace(0, max(0, stored.num_windows - size), NUM_BATCHES).astype(int) // size * size)
    num_other = num_positions = 0
    first: int | None = None
    for start in starts:
        windows = range(start, min(start + size, stored.num_windows))
        differs = (stored.labels(windows) != source.labels(windows)).any(-1)
        num_other += int(differs.sum())
        num_positions += differs.numel()
        if first is None and bool(differs.any()):
            first = start + int(torch.nonzero(differs.any(-1))[0])
    if num_other > MAX_SHARE_OF_OTHER_LABELS * num_positions:
        raise CocomixError(
            f"labels of {path} differ from what its teacher and autoencoder give, first in window {first}: "
            f"{num_other} of {num_positions} positions compared"
        )
    say(f"{path}: {num_positions - num_other:,} of {num_positions:,} positions computed again have the same labels")
