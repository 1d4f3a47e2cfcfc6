"""Token dataset to concept dataset: labels computed once, shard by shard (`labels/shard_work.py`)."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from cocomix.base import artifacts
from cocomix.base.errors import CocomixError, require_at_least
from cocomix.base.kinds import CONCEPT_DATASET
from cocomix.base.labels import IGNORED_LABEL
from cocomix.base.progress import say
from cocomix.data.concept_dataset import write_labels
from cocomix.data.token_dataset import TokenDataset
from cocomix.labels.attribution import ConceptExtractor
from cocomix.labels.config import DERIVED_CONTROLS, AttributionConfig
from cocomix.labels.label_sources import DerivedLabels, TeacherLabels, identify_sae
from cocomix.labels.shard_work import ShardWork, finish_work
from cocomix.labels.verification import verify
from cocomix.modeling.loading import local_model
from cocomix.modeling.teacher import load_teacher
from cocomix.sae.model import SparseAutoencoder

LabelSource = TeacherLabels | DerivedLabels
#: With less, something is likely wrong: only the last position of a window and few others have none.
USUAL_SHARE_LABELLED = 0.5


@dataclass(frozen=True)
class ExtractConfig:
    """Which labels, of which windows."""

    data: Path
    """Token dataset with the teacher's tokenizer."""
    output: Path
    """Folder of the concept dataset."""
    teacher: Path | None = None
    """Causal LM: a folder, a training run, a GGUF file or a Hub name."""
    sae: Path | None = None
    """Autoencoder made by `train-sae` for this teacher, or a dictionary of another origin."""
    layer: int | None = None
    """0-based block of the teacher after which the autoencoder reads; by default what `train-sae` wrote down."""
    labels: Path | None = None
    """Finished concept dataset to make the controls `shuffled` and `frequency` from, in place of teacher and sae; the other
    attribution settings are its own."""
    attribution: AttributionConfig = field(default_factory=AttributionConfig)
    scores: bool = False
    """Store the scores of the labels beside them, as float32."""
    num_windows: int | None = None
    """Label the first so many training windows; by default all."""
    batch_size: int = 16
    """Windows in one pass of the teacher."""
    windows_per_shard: int = 512
    """Windows in one file: what an interruption can cost, what ranks are dealt, and what is held in memory until written."""
    verify: bool = False
    """Make nothing: check every byte of the finished folder and, with teacher and sae given, labels of some windows."""
    overwrite: bool = False
    """Replace what a former run left in the output folder."""

    def __post_init__(self) -> None:
        require_at_least(1, self, "num_windows", "batch_size", "windows_per_shard")
        require_at_least(0, self, "layer")
        if (self.teacher is None) != (self.sae is None):
            raise CocomixError("labels come from a teacher and its autoencoder: give --teacher and --sae")
        if self.verify:
            return
        if self.attribution.control in DERIVED_CONTROLS:
            if self.labels is None or self.teacher is not None:
                raise CocomixError(
                    f"the control {self.attribution.control!r} is made from finished labels: give --labels, without "
                    "--teacher and --sae"
                )
            if self.scores:
                raise CocomixError(
                    f"labels of the control {self.attribution.control!r} have no scores; leave out --scores"
                )
        elif self.teacher is None:
            raise CocomixError("labels come from a teacher and its autoencoder: give --teacher and --sae")
        elif self.labels is not None:
            raise CocomixError("--labels is for the controls 'shuffled' and 'frequency'; see --attribution.control")


def extract(config: ExtractConfig) -> artifacts.Manifest:
    """Make the concept dataset, continue an interrupted one, or recognise a finished one; alone or under `torchrun`."""
    if config.teacher is not None:
        config = dataclasses.replace(config, teacher=local_model(config.teacher))
    data = TokenDataset(config.data, "train")
    if config.verify:
        return verify(config.output, data, config.teacher, config.sae, config.layer)
    source = _source_of(config, data)
    num_windows = config.num_windows or source.num_windows
    if num_windows > source.num_windows:
        raise CocomixError(
            f"num_windows is {num_windows}, but {config.labels or config.data} has {source.num_windows} training windows"
        )
    settings: dict[str, Any] = {
        "data": data.parts,
        **source.settings,
        "scores": config.scores,
        "num_windows": num_windows,
        # Another batch size may round differently, and a label be another.
        "batch_size": config.batch_size,
        "windows_per_shard": config.windows_per_shard,
    }
    return finish_work(
        config.output,
        CONCEPT_DATASET,
        settings,
        lambda: _Shards(config, source, settings, data.context_length),
        overwrite=config.overwrite,
    )


def load_extractor(
    teacher: Path, sae: Path, attribution: AttributionConfig, layer: int | None = None
) -> ConceptExtractor:
    """Teacher and dictionary from their folders, at the layer that `train-sae` wrote down or the given one."""
    _, found = identify_sae(sae, layer, teacher, artifacts.fingerprint_of_path(teacher))
    return ConceptExtractor(load_teacher(teacher), SparseAutoencoder.from_pretrained(sae), found, attribution)


def _source_of(config: ExtractConfig, data: TokenDataset) -> LabelSource:
    if config.labels is not None:
        return DerivedLabels(data, config.labels, config.attribution)
    assert config.teacher is not None
    assert config.sae is not None
    return TeacherLabels(data, config.teacher, config.sae, config.layer, config.attribution)


class _Shards(ShardWork):
    """The shards of one concept dataset."""

    description = "extracting concept labels"

    def __init__(
        self, config: ExtractConfig, source: LabelSource, settings: dict[str, Any], context_length: int
    ) -> None:
        super().__init__(config.output, settings, config.windows_per_shard, config.batch_size, context_length)
        self.config, self.source = config, source

    def write(self, index: int, batches: Iterator[range]) -> dict[str, Any]:
        parts = [self.source.scored(batch) for batch in batches]
        labels = torch.cat([part.labels for part in parts])
        scores = torch.cat([part.scores for part in parts]) if self.config.scores else None
        write_labels(self.folder, index, labels, self.source.num_concepts, scores)
        return {"num_labelled": int((labels != IGNORED_LABEL).all(-1).sum())}

    def facts(self, notes: list[dict[str, Any]]) -> dict[str, Any]:
        labelled = sum(note["num_labelled"] for note in notes) / (self.num_windows * self.context_length)
        if not labelled:
            raise CocomixError(
                f"no position has as many latents with a score as labels were asked for: {self.config.sae} does not fit the "
                "teacher, or num_labels is too large"
            )
        if labelled < USUAL_SHARE_LABELLED:
            say(f"warning: only {labelled:.0%} of the positions have labels")
        return {
            "num_concepts": self.source.num_concepts,
            "share_labelled": labelled,
            "flops_per_token": self.source.flops_per_token,
        }
