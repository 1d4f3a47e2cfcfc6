"""Token dataset to concept dataset: labels computed once, shard by shard.

A shard's content depends on nothing but its windows and the settings. So it does not matter which process writes which shard:
an interrupted extraction goes on at the first missing one, `torchrun` deals shards out to its ranks, on any number of
machines with a common file system, and all end with the same bytes. Beside each finished shard lies a note with its checksum
and the settings it was made with; a shard without a note that holds is made again.
"""

from __future__ import annotations

import contextlib
import dataclasses
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from cocomix.base import artifacts
from cocomix.base.errors import CocomixError, require_at_least
from cocomix.base.labels import IGNORED_LABEL
from cocomix.base.progress import ProgressLine, say
from cocomix.base.ranks import Ranks, joined_ranks
from cocomix.concepts.attribution import AttributionConfig, ConceptExtractor
from cocomix.concepts.controls import DERIVED_CONTROLS
from cocomix.concepts.label_sources import DerivedLabels, TeacherLabels, identify_sae
from cocomix.concepts.sae import SparseAutoencoder
from cocomix.concepts.teacher import load_teacher
from cocomix.concepts.verification import verify
from cocomix.data.concept_dataset import KIND, write_labels
from cocomix.data.shards import shard_name
from cocomix.data.token_dataset import TokenDataset
from cocomix.modeling.loading import local_model

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
    with joined_ranks() as ranks, contextlib.ExitStack() as stack:
        begun = artifacts.begin(config.output, KIND, settings, overwrite=config.overwrite)
        finished = ranks.from_first(lambda: stack.enter_context(begun))
        if finished:
            if ranks.is_first:
                say(f"{config.output}: the concept dataset is there already")
            return finished
        shards = _Shards(config, source, settings, data.context_length)
        shards.write_missing(ranks)
        ranks.wait()
        return ranks.from_first(shards.finish)


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


class _Shards:
    """The shards of one concept dataset, and the notes beside them."""

    def __init__(
        self, config: ExtractConfig, source: LabelSource, settings: dict[str, Any], context_length: int
    ) -> None:
        self.config, self.source, self.folder = config, source, config.output
        self.made_with = artifacts.fingerprint_of_json(settings)
        self.num_windows, self.context_length = settings["num_windows"], context_length
        self.num_shards = -(-self.num_windows // config.windows_per_shard)

    def write_missing(self, ranks: Ranks) -> None:
        """This rank's part of the shards that are not there: every `size`-th shard."""
        mine = range(ranks.rank, self.num_shards, ranks.size)
        missing = [index for index in mine if self._note(index) is None]
        done = sum(len(self._windows(index)) for index in mine) - sum(len(self._windows(index)) for index in missing)
        T = self.context_length
        description = "extracting concept labels" + (f", rank 0 of {ranks.size}" if ranks.size > 1 else "")
        total = sum(len(self._windows(index)) for index in mine) * T
        with ProgressLine(description, total, completed=done * T, shown=ranks.is_first) as progress:
            for index in missing:
                self._write(index, progress)

    def finish(self) -> artifacts.Manifest:
        """The manifest, if every shard is there."""
        notes = [self._note(index) for index in range(self.num_shards)]
        if None in notes:
            raise CocomixError(
                f"{self.folder / shard_name(notes.index(None))} was not written whole; run the same command again"
            )
        labelled = sum(note["num_labelled"] for note in notes if note) / (self.num_windows * self.context_length)
        if not labelled:
            raise CocomixError(
                f"no position has as many latents with a score as labels were asked for: {self.config.sae} does not fit the "
                "teacher, or num_labels is too large"
            )
        if labelled < USUAL_SHARE_LABELLED:
            say(f"warning: only {labelled:.0%} of the positions have labels")
        facts = {
            "num_concepts": self.source.num_concepts,
            "share_labelled": labelled,
            "num_shards": self.num_shards,
            "seconds": round(sum(note["seconds"] for note in notes if note), 3),
            "flops_per_token": self.source.flops_per_token,
        }
        return artifacts.finish(self.folder, facts)

    def _write(self, index: int, progress: ProgressLine) -> None:
        started = time.perf_counter()
        windows = self._windows(index)
        parts = []
        for start in range(0, len(windows), self.config.batch_size):
            batch = windows[start : start + self.config.batch_size]
            parts.append(self.source.scored(batch))
            progress.advance(len(batch) * self.context_length)
        labels = torch.cat([part.labels for part in parts])
        scores = torch.cat([part.scores for part in parts]) if self.config.scores else None
        write_labels(self.folder, index, labels, self.source.num_concepts, scores)
        note = {
            "made_with": self.made_with,
            "sha256": artifacts.sha256_of_file(self.folder / shard_name(index)),
            "num_labelled": int((labels != IGNORED_LABEL).all(-1).sum()),
            "seconds": time.perf_counter() - started,
        }
        artifacts.write_json(self._note_path(index), note)

    def _windows(self, index: int) -> range:
        size = self.config.windows_per_shard
        return range(index * size, min((index + 1) * size, self.num_windows))

    def _note(self, index: int) -> dict[str, Any] | None:
        """The note of a shard if it holds: the shard is whole, and made with these settings."""
        shard, path = self.folder / shard_name(index), self._note_path(index)
        try:
            note: dict[str, Any] = artifacts.read_json(path)
            holds = note["made_with"] == self.made_with and note["sha256"] == artifacts.sha256_of_file(shard)
        except (OSError, CocomixError, KeyError, TypeError):
            return None
        return note if holds else None

    def _note_path(self, index: int) -> Path:
        return self.folder / f".{shard_name(index)}.json"
