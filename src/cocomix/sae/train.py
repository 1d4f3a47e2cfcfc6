"""Train sparse autoencoders of one or several layers on activations streamed from the teacher.

Each step reads some windows, runs the teacher once up to the highest layer (or reads what a cache kept of that), and for each
layer takes some optimizer steps (`update.py`) on that layer's tokens in random order; only one step's activations are ever
held. The order is a pure function of (seed, step), and layers share nothing but the teacher's pass: each has a folder and
checkpoints of its own, equal to those of a run for that layer alone. An interrupted run resumes each layer where it was.
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
from transformers import PreTrainedModel

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
from cocomix.sae.cache import ActivationCache
from cocomix.sae.config import ExcludedPositions, TrainSaeConfig
from cocomix.sae.model import SparseAutoencoder, SparseAutoencoderConfig
from cocomix.sae.outliers import describe_norms, excluded_positions
from cocomix.sae.quality import SaeQuality, measure_sae, require_variance, windows_per_batch
from cocomix.sae.rules import RULES
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
        D, C, activation = int(teacher.model.config.hidden_size), config.num_latents, config.activation
        k = config.k if RULES[activation].keeps_k else None
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(config.seed)
            sae = SparseAutoencoder(SparseAutoencoderConfig(D, C, k, activation=activation))
        num_auxiliary, dead_after = config.num_auxiliary_latents, config.dead_after_tokens
        self.updater = SaeUpdater(
            sae.to(machine.device),
            config.k,
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
            if "excluded" in latest.meta:  # earlier versions left nothing out
                self.leave_out(ExcludedPositions.from_json(latest.meta["excluded"]))

    def leave_out(self, excluded: ExcludedPositions) -> None:
        """Make it part of the autoencoder that it leaves some positions out."""
        self.updater.sae.config = dataclasses.replace(self.updater.sae.config, excluded=excluded)

    def save(self) -> None:
        excluded = dataclasses.asdict(self.updater.sae.config.excluded)
        self.checkpoints.save(self.step, self.updater.state(), {"seconds": self.seconds, "excluded": excluded})


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
        self.step = min(layer.step for layer in self.layers)
        self.cache = self._open_cache(model, settings) if config.cache and self.step < self.num_steps else None
        self._start([layer for layer in self.layers if layer.is_new])
        if self.step:
            say(f"continuing {config.output} at step {self.step:,} of {self.num_steps:,}")

    def _open_cache(self, model: PreTrainedModel, settings: dict[str, Any]) -> ActivationCache:
        config, T = self.config, self.data.context_length
        assert config.cache is not None
        teacher, num_windows = Teacher(model, config.layers[-1]), self.num_steps * config.batch_size

        def residuals(step: int) -> list[Tensor]:
            with self.machine.products():
                return [h.cpu() for h in teacher.residuals(**self._windows(step).inputs(), layers=config.layers)]

        num_numbers = len(config.layers) * num_windows * T * int(model.config.hidden_size)
        return ActivationCache(
            config.cache,
            {
                "inputs": settings["inputs"],
                "layers": list(config.layers),
                "seed": config.seed,
                "batch_size": config.batch_size,
                "first_windows": self.num_windows,
                "num_windows": num_windows,
                **self.machine.settings,
            },
            context_length=T,
            num_bytes=num_numbers * model.dtype.itemsize,
            max_bytes=config.cache_gigabytes * 1e9,
            residuals=residuals,
        )

    def _start(self, layers: Sequence[_Layer]) -> None:
        """Decide on the first step's activations what new autoencoders leave out, and start their biases."""
        windows = self._windows(0)
        for layer, h in zip(layers, self._residuals(0, windows, layers), strict=True):
            require_variance(h, f"{self.config.teacher} after block {layer.index}")
            layer.leave_out(excluded_positions(self.config.exclude, h, self.data))
            layer.updater.start(self._rows(0, windows, layer, h), self.config.tokens_per_update)
            say(f"block {layer.index}: {describe_norms(h, layer.updater.sae.kept(h, **windows.inputs()))}")

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
        rate = self.max_learning_rate * _part_of_rate(self.config, self.step, self.num_steps)
        stats, windows = [], self._windows(self.step)
        for layer, h in zip(layers, self._residuals(self.step, windows, layers), strict=True):
            rows = self._rows(self.step, windows, layer, h)
            progress = self.step / self.num_steps
            stats.append(layer.updater.update(rows, self.config.tokens_per_update, rate, progress))
            layer.step += 1
            if not math.isfinite(stats[-1].fvu):
                require_variance(h, f"{self.config.teacher} after block {layer.index}")
                raise CocomixError(
                    f"the autoencoder of layer {layer.index} is not finite at step {layer.step}; a lower learning_rate helps"
                )
        for layer in layers:
            layer.seconds += time.perf_counter() - started
        return stats

    def _windows(self, step: int) -> Windows:
        indices = windows_of_step(self.config.seed, step, self.config.batch_size, self.num_windows)
        return self.data.windows(indices).to(self.machine.device)

    def _residuals(self, step: int, windows: Windows, layers: Sequence[_Layer]) -> list[Float[Tensor, "B T D"]]:
        """Residual streams of a step's windows at each layer."""
        indices = [layer.index for layer in layers]
        if not layers:
            return []
        if self.cache is not None:
            return [h.to(self.machine.device) for h in self.cache.residuals(step, indices)]
        with self.machine.products():
            return layers[-1].teacher.residuals(**windows.inputs(), layers=indices)

    def _rows(self, step: int, windows: Windows, layer: _Layer, h: Float[Tensor, "B T D"]) -> Float[Tensor, "N D"]:
        """The tokens that a layer keeps, in a random order that is the same for all layers."""
        generator = torch.Generator().manual_seed((self.config.seed * 1_000_003 + step) % NUM_SEEDS)
        order = torch.randperm(self.tokens_per_step, generator=generator).to(self.machine.device)
        kept = layer.updater.sae.kept(h, **windows.inputs()).flatten()
        rows = h.flatten(0, 1)[order[kept[order]]]
        if len(rows) < 2:
            raise CocomixError(
                f"--exclude {' '.join(self.config.exclude)} leaves {len(rows)} of {len(order)} tokens in step {step + 1}; "
                "leave out fewer kinds of positions, or raise --batch-size"
            )
        return rows

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


def _part_of_rate(config: TrainSaeConfig, step: int, num_steps: int) -> float:
    """Of the learning rate: linear from zero over the first steps, then all of it, linear to zero over the last steps."""
    risen = (step + 1) / max(1.0, config.warmup_fraction * num_steps)
    left = (num_steps - step) / max(1.0, config.decay_fraction * num_steps)
    return min(1.0, risen, left)


def _shown(layers: Sequence[_Layer], stats: Sequence[UpdateStats]) -> dict[str, str]:
    """The figures of a progress line, one for each layer."""
    figures = {
        "fvu": [f"{stat.fvu:.3f}" for stat in stats],
        "l0": [f"{stat.l0:.1f}" for stat in stats],
        "dead": [f"{layer.updater.num_dead:,}" for layer in layers],
    }
    return {name: " / ".join(values) for name, values in figures.items()}
