"""Train sparse autoencoders of one or several layers on activations streamed from the teacher.

Each step reads some windows, runs the teacher once up to the highest layer, and for each layer takes some optimizer steps
(`update.py`) on that layer's tokens in random order; only one step's activations are ever held. The order is a pure function
of (seed, step), and layers share nothing but the teacher's pass: each has a folder and checkpoints of its own, equal to those
of a run for that layer alone. An interrupted run resumes each layer where it was.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int64
from torch import Tensor

from cocomix.base import artifacts
from cocomix.base.checkpoints import Checkpoints, clear_checkpoints
from cocomix.base.devices import Machine, this_machine
from cocomix.base.errors import NUM_SEEDS, CocomixError
from cocomix.base.hub import local_model
from cocomix.base.kinds import SPARSE_AUTOENCODER
from cocomix.base.progress import ProgressLine, say
from cocomix.data.order import windows_of_step
from cocomix.data.token_dataset import TokenDataset, Windows
from cocomix.modeling.loading import check_data, product_size
from cocomix.modeling.teacher import Teacher, load_teacher
from cocomix.sae.config import TrainSaeConfig
from cocomix.sae.model import SparseAutoencoder, SparseAutoencoderConfig
from cocomix.sae.quality import SaeQuality, measure_sae, require_variance, windows_per_batch
from cocomix.sae.update import SaeUpdater, UpdateStats

# Shapes: N tokens, D width of the teacher, C latents, K active latents.

#: Adam's rate scales with the dictionary as 2e-4 / sqrt(C / 2^14) in the large runs of Gao et al.; runs of a million
#: tokens are hundreds of times shorter and take a few times more (`docs/sae_training.md` has what was measured).
LEARNING_RATE_AT_2_14 = 1e-3
#: Gao et al. flag a latent as dead after 10 million tokens and give 512 dead latents, or about half the width, a second
#: chance; a short run has no time for that many tokens.
MAX_DEAD_AFTER_TOKENS = 10_000_000
MAX_AUXILIARY_LATENTS = 512


@dataclass(frozen=True)
class TrainedAutoencoder:
    """One layer's autoencoder, trained and measured: everything that a card can show."""

    output: Path
    """Its folder, which has no manifest yet: files that are written now are part of the content."""
    teacher: Teacher
    sae: SparseAutoencoder
    quality: SaeQuality
    counts: Int64[Tensor, " C"]
    """At how many of the counted tokens each latent was active."""
    train_tokens: int
    validation: TokenDataset
    max_windows: int | None
    """Evenly spaced validation windows that were measured on; None: all."""


CardWriter = Callable[[TrainedAutoencoder], None]


def train_autoencoders(config: TrainSaeConfig, write_card: CardWriter | None = None) -> tuple[artifacts.Manifest, ...]:
    """Train autoencoders, continue an interrupted run, or recognise finished ones.

    Args:
        config: the dictionaries.
        write_card: writes a card into each folder; None: there is none. `cocomix.train_sae` passes that of `tools/sae_card`.

    Returns:
        a manifest for each layer, ascending; its facts hold the quality.
    """
    config = dataclasses.replace(config, teacher=local_model(config.teacher))
    data = TokenDataset(config.data, "train")
    size = functools.partial(product_size, config.teacher, config.batch_size * data.context_length)
    machine = this_machine(config.compute, size, config.outputs[0])
    settings = _settings(config, data) | machine.settings
    _check_output(config)
    with contextlib.ExitStack() as stack:
        manifests: dict[int, artifacts.Manifest] = {}
        for layer in config.layers:
            output = config.layer_output(layer)
            finished = stack.enter_context(
                artifacts.begin(output, SPARSE_AUTOENCODER, settings | {"layer": layer}, overwrite=config.overwrite)
            )
            if finished:
                say(f"{output}: the autoencoder is finished already")
                clear_checkpoints(output)
                manifests[layer] = finished
        unfinished = [layer for layer in config.layers if layer not in manifests]
        if unfinished:
            manifests |= _Run(config, data, settings, unfinished, write_card, machine).finish()
        return tuple(manifests[layer] for layer in config.layers)


def _settings(config: TrainSaeConfig, data: TokenDataset) -> dict[str, Any]:
    """Everything that determines an autoencoder, except its layer."""
    settings = config.settings()
    settings["num_windows"] = min(config.num_windows or data.num_windows, data.num_windows)
    settings["inputs"] = {"data": data.fingerprint, "teacher": artifacts.fingerprint_of_path(config.teacher)}
    return settings


def _check_output(config: TrainSaeConfig) -> None:
    """With several layers the output folder must hold nothing but their folders."""
    if len(config.layers) > 1 and config.output.is_dir():
        for entry in sorted(config.output.iterdir()):
            if not entry.name.startswith((".", "layer-")):
                raise CocomixError(
                    f"{config.output} holds {entry.name}; a run of several layers needs a folder of its own as --output"
                )


class _Layer:
    """One layer's autoencoder in training."""

    def __init__(self, config: TrainSaeConfig, teacher: Teacher, settings: dict[str, Any], machine: Machine) -> None:
        self.index, self.teacher = teacher.layer, teacher
        self.output = config.layer_output(teacher.layer)
        self.checkpoints = Checkpoints(self.output, settings | {"layer": teacher.layer})
        D = int(teacher.model.config.hidden_size)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(config.seed)
            sae = SparseAutoencoder(SparseAutoencoderConfig(D, config.num_latents, config.k))
        num_auxiliary, dead_after = config.num_auxiliary_latents, config.dead_after_tokens
        self.updater = SaeUpdater(
            sae.to(machine.device),
            dead_after_tokens=min(config.num_tokens // 10, MAX_DEAD_AFTER_TOKENS) if dead_after is None else dead_after,
            num_auxiliary_latents=min(D // 2, MAX_AUXILIARY_LATENTS) if num_auxiliary is None else num_auxiliary,
            machine=machine,
        )
        self.step, self.seconds = 0, 0.0
        latest = self.checkpoints.latest()
        self.is_new = latest is None
        if latest is not None:
            self.updater.restore(latest)
            self.step, self.seconds = latest.meta["step"], latest.meta["seconds"]

    def save(self) -> None:
        self.checkpoints.save(self.step, self.updater.state(), {"seconds": self.seconds})


class _Run:
    """All unfinished layers of one command."""

    def __init__(
        self,
        config: TrainSaeConfig,
        data: TokenDataset,
        settings: dict[str, Any],
        layers: Sequence[int],
        write_card: CardWriter | None,
        machine: Machine,
    ) -> None:
        self.config, self.data, self.write_card, self.machine = config, data, write_card, machine
        self.num_windows = int(settings["num_windows"])
        self.tokens_per_step = config.batch_size * data.context_length
        self.num_steps = -(-config.num_tokens // self.tokens_per_step)
        by_size = LEARNING_RATE_AT_2_14 / (config.num_latents / 2**14) ** 0.5
        self.max_learning_rate = by_size if config.learning_rate is None else config.learning_rate
        model = load_teacher(config.teacher, machine)
        with machine.products():
            check_data(model, config.teacher, data)
        self.layers = [_Layer(config, Teacher(model, layer), settings, machine) for layer in layers]
        new = [layer for layer in self.layers if layer.is_new]
        for layer, h in self._activations(0, new):
            require_variance(h, f"{config.teacher} after block {layer.index}")
            layer.updater.start_bias(h)
        self.step = min(layer.step for layer in self.layers)
        if self.step:
            say(f"continuing {config.output} at step {self.step:,} of {self.num_steps:,}")

    def finish(self) -> dict[int, artifacts.Manifest]:
        """Train what is left to train, and measure each autoencoder."""
        if self.step < self.num_steps:
            self._train()
        return {layer.index: self._finish(layer) for layer in self.layers}

    def _train(self) -> None:
        config = self.config
        with ProgressLine(
            f"training {config.output.name}",
            self.num_steps * self.tokens_per_step,
            completed=self.step * self.tokens_per_step,
        ) as progress:
            while self.step < self.num_steps:
                # After a kill between two checkpoints of one step, a layer waits here until the others have caught up.
                layers = [layer for layer in self.layers if layer.step == self.step]
                stats = self._train_step(layers)
                self.step += 1
                progress.advance(self.tokens_per_step, **_shown(layers, stats))
                if self.step % config.checkpoint_every_steps == 0 or self.step == self.num_steps:
                    for layer in layers:
                        layer.save()

    def _train_step(self, layers: Sequence[_Layer]) -> list[UpdateStats]:
        """Each layer's optimizer steps on one step's tokens."""
        started = time.perf_counter()
        # Constant, then linear to zero over the last fifth, as usual for dictionaries.
        rate = self.max_learning_rate * min(1.0, (self.num_steps - self.step) / (0.2 * self.num_steps))
        stats = []
        for layer, h in self._activations(self.step, layers):
            stats.append(layer.updater.update(h, self.config.tokens_per_update, rate))
            layer.step += 1
            if not math.isfinite(stats[-1].fvu):
                require_variance(h, f"{self.config.teacher} after block {layer.index}")
                raise CocomixError(
                    f"the autoencoder of layer {layer.index} is not finite at step {layer.step}; a lower learning_rate helps"
                )
        for layer in layers:
            layer.seconds += time.perf_counter() - started
        return stats

    def _activations(self, step: int, layers: Sequence[_Layer]) -> Iterator[tuple[_Layer, Float[Tensor, "N D"]]]:
        """Residual streams of one step's windows at each layer, all in the same random order of tokens."""
        if not layers:
            return
        windows = windows_of_step(self.config.seed, step, self.config.batch_size, self.num_windows)
        inputs = self.data.windows(windows).to(self.machine.device).inputs()
        with self.machine.products():
            residuals = layers[-1].teacher.residuals(**inputs, layers=[layer.index for layer in layers])
        generator = torch.Generator().manual_seed((self.config.seed * 1_000_003 + step) % NUM_SEEDS)
        order = torch.randperm(self.tokens_per_step, generator=generator).to(self.machine.device)
        for layer, h in zip(layers, residuals, strict=True):
            yield layer, h.flatten(0, 1)[order]

    def _finish(self, layer: _Layer) -> artifacts.Manifest:
        with self.machine.products():
            return self._measure(layer)

    def _measure(self, layer: _Layer) -> artifacts.Manifest:
        """Measure and write one layer's autoencoder."""
        config, sae = self.config, layer.updater.sae.eval().requires_grad_(False)
        validation = TokenDataset(config.data, "validation")
        max_windows = config.max_validation_windows
        further = self._held_out(min(max_windows or validation.num_windows, validation.num_windows))
        quality, counts = measure_sae(layer.teacher, sae, validation, max_windows=max_windows, further=further)
        sae.save_pretrained(layer.output)
        train_tokens = self.num_steps * self.tokens_per_step
        if self.write_card is not None:
            self.write_card(
                TrainedAutoencoder(
                    layer.output, layer.teacher, sae, quality, counts, train_tokens, validation, max_windows
                )
            )
        facts = {
            "train_tokens": train_tokens,
            "train_seconds": round(layer.seconds, 3),
            "quality": dataclasses.asdict(quality),
        }
        manifest = artifacts.finish(layer.output, facts)
        clear_checkpoints(layer.output)
        return manifest

    def _held_out(self, num_validation_windows: int) -> Iterator[Windows]:
        """Windows of the training split that no step read, as many as are needed beside the validation windows."""
        T, num_read = self.data.context_length, self.num_steps * self.config.batch_size
        num_needed = -(-self.config.num_counted_tokens // T) - num_validation_windows
        if num_needed <= 0:
            return
        read = windows_of_step(self.config.seed, 0, min(num_read, self.num_windows), self.num_windows)
        unread = np.setdiff1d(np.arange(self.data.num_windows), read)
        count = min(num_needed, len(unread))
        if not count:
            return
        chosen = unread[np.arange(count) * len(unread) // max(count, 1)]
        batch_size = windows_per_batch(self.data)
        with ProgressLine("counting active latents", count * T) as progress:
            for start in range(0, count, batch_size):
                windows = chosen[start : start + batch_size]
                yield self.data.windows(windows)
                progress.advance(len(windows) * T)


def _shown(layers: Sequence[_Layer], stats: Sequence[UpdateStats]) -> dict[str, str]:
    """The figures of a progress line, one for each layer."""
    figures = {
        "fvu": [f"{stat.fvu:.3f}" for stat in stats],
        "l0": [f"{stat.l0:.1f}" for stat in stats],
        "dead": [f"{layer.updater.num_dead:,}" for layer in layers],
    }
    return {name: " / ".join(values) for name, values in figures.items()}
