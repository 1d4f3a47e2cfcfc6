"""Token dataset to concept dataset: labels computed once, shard by shard.

A shard's content depends on nothing but its windows, so an interrupted extraction goes on at the first missing shard and
ends with the same bytes.
"""

from __future__ import annotations

import dataclasses
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from cocomix.base import artifacts
from cocomix.base.errors import CocomixError, require_at_least
from cocomix.base.progress import ProgressLine, say
from cocomix.concepts import sae_training
from cocomix.concepts.attribution import AttributionConfig, ConceptExtractor
from cocomix.concepts.sae import SparseAutoencoder
from cocomix.concepts.teacher import load_teacher
from cocomix.data.concept_dataset import KIND, write_labels
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

    teacher: Path
    """Causal LM: a folder or a training run."""
    sae: Path
    """Autoencoder folder made by `train-sae` for this teacher."""
    data: Path
    """Token dataset with the teacher's tokenizer."""
    output: Path
    """Folder of the concept dataset."""
    attribution: AttributionConfig = field(default_factory=AttributionConfig)
    num_windows: int | None = None
    """Label the first so many training windows; by default all."""
    batch_size: int = 16
    """Windows in one pass of the teacher."""
    overwrite: bool = False
    """Replace what a former run left in the output folder."""

    def __post_init__(self) -> None:
        require_at_least(1, self, "num_windows", "batch_size")


def extract(config: ExtractConfig) -> artifacts.Manifest:
    """Make the concept dataset, continue an interrupted one, or recognise a finished one."""
    data = TokenDataset(config.data, "train")
    sae_manifest = artifacts.read(config.sae, sae_training.KIND)
    teacher_fingerprint = artifacts.fingerprint_of_path(config.teacher)
    _check_teacher(config.sae, sae_manifest, config.teacher, teacher_fingerprint)
    num_windows = config.num_windows or data.num_windows
    if num_windows > data.num_windows:
        raise CocomixError(f"num_windows is {num_windows}, but {config.data} has {data.num_windows} training windows")
    settings: dict[str, Any] = {
        "data": data.fingerprint,
        "teacher": teacher_fingerprint,
        "sae": sae_manifest.fingerprint,
        "layer": sae_manifest.settings["layer"],
        "attribution": dataclasses.asdict(config.attribution),
        "num_windows": num_windows,
        # Another batch size may round differently, and a label be another.
        "batch_size": config.batch_size,
    }
    with artifacts.begin(config.output, KIND, settings, overwrite=config.overwrite) as finished:
        if finished:
            say(f"{config.output}: the concept dataset is there already")
            return finished
        extractor = load_extractor(config.teacher, config.sae, config.attribution)
        data.check_model(config.teacher, extractor.teacher.model.config.vocab_size)
        num_shards, seconds = _write_shards(config, extractor, data, num_windows)
        facts = {
            "num_concepts": extractor.sae.config.num_latents,
            "num_shards": num_shards,
            "seconds": seconds,
            "flops_per_token": _flops_per_token(extractor, data.context_length),
        }
        return artifacts.finish(config.output, facts)


def load_extractor(teacher: Path, sae: Path, attribution: AttributionConfig) -> ConceptExtractor:
    """Teacher and autoencoder from their folders, at the layer that the autoencoder was trained on."""
    manifest = artifacts.read(sae, sae_training.KIND)
    _check_teacher(sae, manifest, teacher, artifacts.fingerprint_of_path(teacher))
    layer = int(manifest.settings["layer"])
    return ConceptExtractor(load_teacher(teacher), SparseAutoencoder.from_pretrained(sae), layer, attribution)


def _check_teacher(sae: Path, manifest: artifacts.Manifest, teacher: Path, fingerprint: str) -> None:
    if manifest.settings["inputs"]["teacher"] != fingerprint:
        raise CocomixError(f"the autoencoder {sae} was trained on another teacher than {teacher}")


def _write_shards(
    config: ExtractConfig, extractor: ConceptExtractor, data: TokenDataset, num_windows: int
) -> tuple[int, float]:
    """Write the missing shards; returns how many there are in all, and the seconds they took."""
    T, C = data.context_length, extractor.sae.config.num_latents
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
                parts.append(extractor(data.input_ids(windows)))
                progress.advance(len(windows) * T)
            write_labels(config.output, i, torch.cat(parts), C)
            artifacts.write_json(seconds_file, _seconds(seconds_file) + time.perf_counter() - started)
    return len(starts), round(_seconds(seconds_file), 3)


def _seconds(file: Path) -> float:
    """Time that all processes spent on the shards so far; not content, so beside the manifest."""
    return float(artifacts.read_json(file)) if file.exists() else 0.0


def _flops_per_token(extractor: ConceptExtractor, context_length: int) -> float:
    """Teacher up to the hook and the SAE's encoder; with attribution also what is above the hook, forward and backward."""
    adapter, hook = extractor.teacher.adapter, extractor.teacher.layer + 1
    flops = span_flops_per_token(adapter, 0, hook, context_length)
    flops += 2 * extractor.sae.config.num_latents * extractor.sae.config.hidden_size
    if extractor.config.criterion == "attribution":
        above = span_flops_per_token(adapter, hook, adapter.num_blocks, context_length) + head_flops(adapter)
        # A frozen weight's product has one in the backward, the gradient of its input; attention's have two.
        backward = above + attention_flops_per_token(adapter, hook, adapter.num_blocks, context_length)
        num_forwards = 2 if extractor.config.loss == "next_token" else 1
        flops += num_forwards * above + backward
    return flops
