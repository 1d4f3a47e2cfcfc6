"""`cocomix extract`: token dataset to concept dataset, labels computed once, shard by shard (`data/shard_work.py`).

`--verify` checks that a finished concept dataset is what it says: every byte, the inputs, and the labels of some windows,
which are computed again.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from cocomix.base import artifacts
from cocomix.base.devices import Machine, this_device
from cocomix.base.errors import CocomixError
from cocomix.base.hub import local_model
from cocomix.base.kinds import CONCEPT_DATASET
from cocomix.base.progress import say
from cocomix.data import IGNORED_LABEL
from cocomix.data.concept_dataset import ConceptDataset, write_labels
from cocomix.data.shard_work import ShardWork, finish_work, machine_of_ranks
from cocomix.data.token_dataset import TokenDataset
from cocomix.labels.config import AttributionConfig, ExtractConfig
from cocomix.labels.controls import DerivedLabels
from cocomix.labels.live import TeacherLabels
from cocomix.labels.passes import windows_per_pass
from cocomix.modeling.loading import product_size

LabelSource = TeacherLabels | DerivedLabels
#: With a smaller share, something is likely wrong: only the last position of a window and few others have no label.
USUAL_SHARE_LABELLED = 0.5
#: `verify` computes the labels of this many batches again.
NUM_VERIFIED_BATCHES = 4
#: On another processor or library rounding differs and nearly equal scores change places; with another teacher most differ.
MAX_SHARE_OF_OTHER_LABELS = 0.01


def extract(config: ExtractConfig) -> artifacts.Manifest:
    """Make the concept dataset, continue an interrupted one, or recognise a finished one; alone or under `torchrun`."""
    if config.teacher is not None:
        config = dataclasses.replace(config, teacher=local_model(config.teacher))
    data = TokenDataset(config.data, "train")
    if config.verify:
        device = this_device(config.compute.device)
        return verify(config.output, data, config.teacher, config.sae, config.layer, device)
    # Without a teacher nothing is multiplied, and `ExtractConfig` refuses `auto`.
    size = functools.partial(product_size, config.teacher or Path(), (config.batch_size or 1) * data.context_length)
    with machine_of_ranks(config.compute, size, config.output) as machine:
        return _extract(config, data, machine)


def _extract(config: ExtractConfig, data: TokenDataset, machine: Machine) -> artifacts.Manifest:
    source = _label_source(config, data, machine)
    num_windows = config.num_windows or source.num_windows
    if num_windows > source.num_windows:
        raise CocomixError(
            f"num_windows is {num_windows}, but {config.labels or config.data} has {source.num_windows} training windows"
        )
    settings: dict[str, Any] = {
        "data": data.parts,
        **config.settings(),
        **source.settings,
        "num_windows": num_windows,
        "batch_size": windows_per_pass(config, source.windows_that_fit),
    }
    return finish_work(
        config.output,
        CONCEPT_DATASET,
        settings,
        lambda: _Shards(config, source, settings),
        overwrite=config.overwrite,
    )


def _label_source(config: ExtractConfig, data: TokenDataset, machine: Machine) -> LabelSource:
    if config.labels is not None:
        return DerivedLabels(data, config.labels, config.attribution)
    assert config.teacher is not None
    assert config.sae is not None
    return TeacherLabels(
        data, config.teacher, config.sae, config.layer, config.attribution, machine, compile=config.compile
    )


class _Shards(ShardWork):
    """The shards of one concept dataset."""

    description = "extracting concept labels"

    def __init__(self, config: ExtractConfig, source: LabelSource, settings: dict[str, Any]) -> None:
        super().__init__(config.output, settings, source.data.context_length)
        self.config, self.source = config, source

    def make(self, batches: Iterator[range]) -> tuple[Tensor, Tensor | None]:
        parts = [self.source.scored(batch) for batch in batches]
        self.source.check()
        labels = torch.cat([part.labels for part in parts]).cpu()
        return labels, torch.cat([part.scores for part in parts]).cpu() if self.config.scores else None

    def write(self, index: int, content: tuple[Tensor, Tensor | None]) -> dict[str, Any]:
        labels, scores = content
        write_labels(self.folder, index, labels, self.source.num_concepts, scores)
        return {"num_labelled": int((labels != IGNORED_LABEL).any(-1).sum())}

    def facts(self, receipts: list[dict[str, Any]]) -> dict[str, Any]:
        labelled = sum(receipt["num_labelled"] for receipt in receipts) / (self.num_windows * self.context_length)
        if not labelled:
            raise CocomixError(
                f"no position has a latent with a positive score: {self.config.sae} does not fit the teacher"
            )
        if labelled < USUAL_SHARE_LABELLED:
            say(f"warning: only {labelled:.0%} of the positions have labels")
        return {
            "num_concepts": self.source.num_concepts,
            "share_labelled": labelled,
            "flops_per_token": self.source.flops_per_token,
        }


def verify(
    path: Path, data: TokenDataset, teacher: Path | None, sae: Path | None, layer: int | None, device: torch.device
) -> artifacts.Manifest:
    """Check a concept dataset.

    Args:
        path: its folder.
        data: the token dataset it should belong to.
        teacher: with `sae`, also compare these and compute the labels of evenly spaced batches again.
        sae: the teacher's dictionary.
        layer: needed where the dictionary does not say its own.
        device: to compute them on, in the precision that the dataset was made in.

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
        machine = Machine(device, stored.settings.get("precision", "float32"))
        attribution = AttributionConfig(**stored.settings["attribution"])
        source = TeacherLabels(data, teacher, sae, layer, attribution, machine)
        for name in ("teacher", "sae", "layer"):
            if source.settings[name] != stored.settings[name]:
                raise CocomixError(f"{path} was made with another {name} than the given one")
        _compare(path, stored, source)
    return stored.manifest


def _compare(path: Path, stored: ConceptDataset, source: TeacherLabels) -> None:
    """Compute whole batches again, the same ones as before, so that on the same machine even the rounding is equal."""
    size = int(stored.settings["batch_size"])
    starts = np.unique(
        np.linspace(0, max(0, stored.num_windows - size), NUM_VERIFIED_BATCHES).astype(int) // size * size
    )
    num_other = num_positions = 0
    first: int | None = None
    for start in starts:
        windows = range(start, min(start + size, stored.num_windows))
        differs = (stored.labels(windows) != source.labels(windows).cpu()).any(-1)
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
