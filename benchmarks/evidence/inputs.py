"""What students learn from: a dataset, a teacher, its dictionary, and labels, each made when it is first asked for."""

from __future__ import annotations

import fcntl
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import cached_property
from pathlib import Path

from benchmarks.evidence import cells
from benchmarks.evidence.corpora import Places, prepare_config
from benchmarks.evidence.sizes import NUM_ACTIVE_LATENTS, Regime
from cocomix import (
    AttributionConfig,
    ExtractConfig,
    ParallelConfig,
    TokenDataset,
    TrainSaeConfig,
    extract,
    prepare,
    train,
    train_sae,
)
from cocomix.base.artifacts import MANIFEST_NAME, fingerprint_of_json, read_json
from cocomix.labels.attribution import random_dictionary
from cocomix.modeling.flops import span_flops_per_token
from cocomix.sae.model import SparseAutoencoder
from cocomix.training import recipes
from cocomix.training.config import TrainConfig
from cocomix.training.sizes import Size
from cocomix.training.widths import meta_model


def parallel_of(device: str, regime: Regime) -> ParallelConfig:
    """Precision and compilation that suit a device and a size."""
    if device == "cpu":  # compiled, float32 is faster than bfloat16 at these widths
        return ParallelConfig(device="cpu", compile=regime.compile)
    return ParallelConfig(device="cuda", precision="bfloat16", compile=regime.compile, logits_megabytes=1024)


@contextmanager
def alone(output: Path) -> Iterator[None]:
    """Context in which one process makes a folder, while others that ask for it wait."""
    output.parent.mkdir(parents=True, exist_ok=True)
    with output.with_name(f".{output.name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


class Inputs:
    """Folders of one size, corpus and teacher.

    A teacher of the same dataset that stands beside the results is used as it is: made again on another machine it
    differs, and so do its students.

    Args:
        places: on this machine.
        regime: of the students.
        corpus: name.
        teacher: name; `none` for students that learn without one.
        num_latents: of the dictionary; None: as many as the size has concepts.
    """

    def __init__(
        self, places: Places, regime: Regime, corpus: str, teacher: str, num_latents: int | None = None
    ) -> None:
        self.places, self.regime, self.corpus, self.name = places, regime, corpus, teacher
        self.num_latents = num_latents or regime.size.num_concepts
        self.folder = places.work / regime.size.name / corpus / teacher

    @property
    def size(self) -> Size:
        return self.regime.size

    @cached_property
    def data(self) -> Path:
        config = prepare_config(self.corpus, self.regime, self.places)
        with alone(config.output):
            prepare(config)
        return config.output

    def num_windows(self, num_tokens: int) -> int:
        """Training windows of a run: those it needs, or all, which it then sees more than once."""
        needed = -(-num_tokens // self.size.context_length)
        return min(needed, TokenDataset(self.data, "train").num_windows)

    @cached_property
    def teacher(self) -> Path:
        kept = cells.RESULTS / self.size.name / self.corpus / self.name / "teacher"
        if kept.exists():
            learned_from = read_json(kept / MANIFEST_NAME)["settings"]["inputs"]["data"]
            if learned_from == TokenDataset(self.data).fingerprint:
                return kept
        data, output, spec = self.data, self.folder / "teacher", self.regime.teachers[self.name]
        base = recipes.ntp(self.size)
        rate = spec.learning_rate or base.optimizer.learning_rate
        config = replace(
            base,
            optimizer=replace(base.optimizer, learning_rate=rate),
            seed=spec.seed,
            data=data,
            output=output,
            student=spec.shape,
            num_tokens=spec.tokens,
            num_windows=self.num_windows(spec.tokens),
            parallel=parallel_of(self.places.device, self.regime),
        )
        with alone(output):
            train(config)
        return output

    @cached_property
    def random_sae(self) -> Path:
        """The dictionary of the labels of `random`."""
        output = self.folder / f"random-sae-{self.num_latents}"
        with alone(output):
            if not output.exists():
                seed = AttributionConfig().seed
                random_dictionary(SparseAutoencoder.from_pretrained(self.sae), seed).save_pretrained(output)
        return output

    @cached_property
    def sae(self) -> Path:
        teacher, output, spec = self.teacher, self.folder / f"sae-{self.num_latents}", self.regime.teachers[self.name]
        with alone(output):
            train_sae(
                TrainSaeConfig(
                    teacher=teacher,
                    data=self.data,
                    output=output,
                    layer=spec.layer,
                    num_latents=self.num_latents,
                    k=min(NUM_ACTIVE_LATENTS, self.num_latents),
                    num_tokens=self.regime.dictionary_tokens,
                    num_counted_tokens=0,
                )
            )
        return output

    @property
    def dictionary_flops(self) -> float:
        """Of training a dictionary: the teacher up to it, then encoder and decoder forward and backward, as if dense."""
        spec = self.regime.teachers[self.name]
        model = meta_model(TrainConfig(student=spec.shape), self.size)
        teacher_flops = span_flops_per_token(model.adapter, 0, spec.layer + 1, self.size.context_length)
        products = 3 * (2 + 2) * self.num_latents * spec.shape.hidden_size
        return self.regime.dictionary_tokens * (teacher_flops + products)

    def labels(self, attribution: AttributionConfig) -> Path:
        """A concept dataset of the windows that a run of whole length needs."""
        source = {"teacher": self.teacher, "sae": self.sae, "data": self.data}
        output = self.folder / f"labels-{self.num_latents}-{fingerprint_of_json(vars(attribution))[:12]}"
        num_windows = self.num_windows(self.size.num_tokens)
        with alone(output):
            extract(ExtractConfig(output=output, attribution=attribution, num_windows=num_windows, **source))
        return output
