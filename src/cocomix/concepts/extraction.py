"""Token dataset to concept dataset: labels computed once, shard by shard.

A shard's content depends on nothing but its windows, so an interrupted extraction goes on at the first missing shard and
ends with the same bytes. The controls `shuffled` and `frequency` are made from a finished concept dataset instead.
"""

from __future__ import annotations

import dataclasses
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from cocomix.base import artifacts
from cocomix.base.errors import CocomixError, require_at_least
from cocomix.base.labels import IGNORED_LABEL
from cocomix.base.progress import ProgressLine, say
from cocomix.concepts import sae_training
from cocomix.concepts.attribution import AttributionConfig, ConceptExtractor
from cocomix.concepts.controls import DERIVED_CONTROLS, draw_labels, shuffle_labels
from cocomix.concepts.sae import SparseAutoencoder
from cocomix.concepts.teacher import load_teacher
from cocomix.data.concept_dataset import KIND, ConceptDataset, write_labels
from cocomix.data.shards import shard_name
from cocomix.data.token_dataset import TokenDataset
from cocomix.modeling.flops import (
    attention_flops_per_token,
    head_flops,
    span_flops_per_token,
)

WINDOWS_PER_SHARD = 512


@dataclass(frozen=True)
class ExtractConfig:
    """Which labels, of which windows."""

    data: Path
    """Token dataset with the teacher's tokenizer."""
    output: Path
    """Folder of the concept dataset."""
    teacher: Path | None = None
    """Causal LM: a folder or a training run."""
    sae: Path | None = None
    """Autoencoder folder made by `train-sae` for this teacher."""
    labels: Path | None = None
    """Finished concept dataset to make the controls `shuffled` and `frequency` from, in place of teacher and sae; the other
    attribution settings are its own."""
    attribution: AttributionConfig = field(default_factory=AttributionConfig)
    num_windows: int | None = None
    """Label the first so many training windows; by default all."""
    batch_size: int = 16
    """Windows in one pass of the teacher."""
    overwrite: bool = False
    """Replace what a former run left in the output folder."""

    def __post_init__(self) -> None:
        require_at_least(1, self, "num_windows", "batch_size")
        if self.attribution.control in DERIVED_CONTROLS:
            if self.labels is None or self.teacher is not None or self.sae is not None:
                raise CocomixError(
                    f"the control {self.attribution.control!r} is made from finished labels: give --labels, without "
                    "--teacher and --sae"
                )
        elif self.teacher is None or self.sae is None:
            raise CocomixError("labels come from a teacher and its autoencoder: give --teacher and --sae")
        elif self.labels is not None:
            raise CocomixError("--labels is for the controls 'shuffled' and 'frequency'; see --attribution.control")


def extract(config: ExtractConfig) -> artifacts.Manifest:
    """Make the concept dataset, continue an interrupted one, or recognise a finished one."""
    data = TokenDataset(config.data, "train")
    source = _Derived(config, data) if config.labels is not None else _FromTeacher(config, data)
    num_windows = config.num_windows or source.num_windows
    if num_windows > source.num_windows:
        raise CocomixError(
            f"num_windows is {num_windows}, but {config.labels or config.data} has {source.num_windows} training windows"
        )
    settings: dict[str, Any] = {
        "data": data.fingerprint,
        **source.settings,
        "num_windows": num_windows,
        # Another batch size may round differently, and a label be another.
        "batch_size": config.batch_size,
    }
    with artifacts.begin(config.output, KIND, settings, overwrite=config.overwrite) as finished:
        if finished:
            say(f"{config.output}: the concept dataset is there already")
            return finished
        source.open()
        num_shards, seconds = _write_shards(config, source, data.context_length, num_windows)
        facts = {
            "num_concepts": source.num_concepts,
            "num_shards": num_shards,
            "seconds": seconds,
            "flops_per_token": source.flops_per_token,
        }
        return artifacts.finish(config.output, facts)


class _FromTeacher:
    """Labels computed by a teacher and its autoencoder."""

    def __init__(self, config: ExtractConfig, data: TokenDataset) -> None:
        assert config.teacher is not None
        assert config.sae is not None
        self.config, self.data, self.teacher, self.sae = config, data, config.teacher, config.sae
        self.num_windows = data.num_windows
        manifest = artifacts.read(self.sae, sae_training.KIND)
        fingerprint = artifacts.fingerprint_of_folder(self.teacher)
        _check_teacher(self.sae, manifest, self.teacher, fingerprint)
        self.settings: dict[str, Any] = {
            "teacher": fingerprint,
            "sae": manifest.fingerprint,
            "layer": manifest.settings["layer"],
            "attribution": dataclasses.asdict(config.attribution),
        }

    def open(self) -> None:
        """Load what computes labels: only where something is left to compute."""
        self.extractor = load_extractor(self.teacher, self.sae, self.config.attribution)
        self.data.check_model(self.teacher, self.extractor.teacher.model.config.vocab_size)
        self.num_concepts = self.extractor.sae.config.num_latents
        self.flops_per_token = _flops_per_token(self.extractor, self.data.context_length)

    def labels(self, windows: range) -> Tensor:
        return self.extractor(self.data.input_ids(windows))


class _Derived:
    """Controls made from finished labels."""

    def __init__(self, config: ExtractConfig, data: TokenDataset) -> None:
        assert config.labels is not None
        self.config, self.data = config, data
        self.source = ConceptDataset(config.labels, data)
        self.num_windows, self.num_concepts = self.source.num_windows, self.source.num_concepts
        self.flops_per_token = self.source.flops_per_token  # the true labels had to be computed
        control = {"control": config.attribution.control, "seed": config.attribution.seed}
        self.settings: dict[str, Any] = {
            "labels": self.source.fingerprint,
            "attribution": self.source.settings["attribution"] | control,
        }

    def open(self) -> None:
        """Count the labels: the histogram is that of the whole source, however many windows are labelled from it."""
        self.histogram = torch.zeros(self.num_concepts, dtype=torch.long)
        for start in range(0, self.num_windows, WINDOWS_PER_SHARD):
            labels = self.source.labels(range(start, min(start + WINDOWS_PER_SHARD, self.num_windows)))
            self.histogram += torch.bincount(labels[labels != IGNORED_LABEL], minlength=self.num_concepts)

    def labels(self, windows: range) -> Tensor:
        input_ids, labels = self.data.input_ids(windows), self.source.labels(windows)
        if self.config.attribution.control == "shuffled":
            return shuffle_labels(input_ids, labels, self.config.attribution.seed)
        return draw_labels(input_ids, labels, self.histogram, self.config.attribution.seed)


def load_extractor(teacher: Path, sae: Path, attribution: AttributionConfig) -> ConceptExtractor:
    """Teacher and autoencoder from their folders, at the layer that the autoencoder was trained on."""
    manifest = artifacts.read(sae, sae_training.KIND)
    _check_teacher(sae, manifest, teacher, artifacts.fingerprint_of_folder(teacher))
    layer = int(manifest.settings["layer"])
    return ConceptExtractor(load_teacher(teacher), SparseAutoencoder.from_pretrained(sae), layer, attribution)


def _check_teacher(sae: Path, manifest: artifacts.Manifest, teacher: Path, fingerprint: str) -> None:
    if manifest.settings["inputs"]["teacher"] != fingerprint:
        raise CocomixError(f"the autoencoder {sae} was trained on another teacher than {teacher}")


def _write_shards(
    config: ExtractConfig, source: _FromTeacher | _Derived, T: int, num_windows: int
) -> tuple[int, float]:
    """Write the missing shards; returns how many there are in all, and the seconds they took."""
    seconds_file = config.output / ".seconds.json"
    starts = range(0, num_windows, WINDOWS_PER_SHARD)
    missing = [i for i in range(len(starts)) if not (config.output / shard_name(i)).exists()]
    num_done = num_windows - sum(min(WINDOWS_PER_SHARD, num_windows - starts[i]) for i in missing)
    with ProgressLine("extracting concept labels", num_windows * T, completed=num_done * T) as progress:
        for i in missing:
            stop = min(starts[i] + WINDOWS_PER_SHARD, num_windows)
            parts = []
            started = time.perf_counter()
            for start in range(starts[i], stop, config.batch_size):
                windows = range(start, min(start + config.batch_size, stop))
                parts.append(source.labels(windows))
                progress.advance(len(windows) * T)
            write_labels(config.output, i, torch.cat(parts), source.num_concepts)
            artifacts.write_json(seconds_file, _seconds(seconds_file) + time.perf_counter() - started)
    return len(starts), round(_seconds(seconds_file), 3)


def _seconds(file: Path) -> float:
    """Time that all processes spent on the shards so far; not content, so beside the manifest."""
    return float(artifacts.read_json(file)) if file.exists() else 0.0


def _flops_per_token(extractor: ConceptExtractor, context_length: int) -> float:
    """Teacher up to the hook and the SAE's encoder; with attribution also what is above the hook, forward and backward."""
    adapter, hook = extractor.teacher.adapter, extractor.teacher.layer + 1
    flops = span_flops_per_token(adapter, 0, hook, context_length)
    C, D = extractor.sae.config.num_latents, extractor.sae.config.hidden_size
    flops += 2 * C * D
    settings = extractor.config
    if settings.criterion == "attribution":
        above = span_flops_per_token(adapter, hook, adapter.num_blocks, context_length) + head_flops(adapter)
        # A frozen weight's product has one in the backward, the gradient of its input; attention's have two.
        backward = above + attention_flops_per_token(adapter, hook, adapter.num_blocks, context_length)
        num_caching = 0 if (settings.point, settings.loss) == ("original", "all_future") else 1
        # One pass a position, over the positions from it on: (T + 1) / 2 of them in the mean.
        num_passes = (
            (context_length + 1) / 2 if (settings.point, settings.loss) == ("reconstruction", "all_future") else 1
        )
        flops += num_caching * above + num_passes * (above + backward)
        if settings.value == "pre_activation":
            flops += 2 * 2 * C * D  # all pre-activations again, and all directions
    return flops
