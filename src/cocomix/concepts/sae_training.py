"""Train a TopK sparse autoencoder on activations streamed from the teacher (Gao et al., arXiv 2406.04093).

Each step reads some windows, runs the teacher up to the hook, and takes a few optimizer steps on random slices of the
tokens; no activations are stored. The order is a pure function of (seed, step), so a run resumes exactly.
"""

from __future__ import annotations

import dataclasses
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from cocomix.base import artifacts
from cocomix.base.checkpoints import Checkpoints, restore_state, state_of
from cocomix.base.errors import CocomixError, require_at_least
from cocomix.base.progress import ProgressLine, say
from cocomix.concepts.sae import SparseAutoencoder, SparseAutoencoderConfig
from cocomix.concepts.sae_quality import sae_quality
from cocomix.concepts.teacher import Teacher, load_teacher
from cocomix.data.order import windows_of_step
from cocomix.data.token_dataset import TokenDataset

# Shapes: N tokens, D width of the teacher, C latents, K active latents.

KIND = "sparse-autoencoder"
#: Adam's rate scales with the dictionary as 2e-4 / sqrt(C / 2^14) in the large runs of Gao et al.; runs of a million
#: tokens are hundreds of times shorter and take a few times more.
LEARNING_RATE_AT_2_14 = 1e-3
AUXILIARY_LOSS_WEIGHT = 1 / 32


@dataclass(frozen=True)
class TrainSaeConfig:
    """One dictionary of one layer of one teacher."""

    teacher: Path
    """Causal LM: a folder or a training run."""
    data: Path
    """Token dataset with the teacher's tokenizer."""
    output: Path
    """Folder of the autoencoder."""
    layer: int = 2
    """0-based block of the teacher after which activations are read."""
    num_latents: int = 1024
    """C, size of the dictionary."""
    k: int = 16
    """K, latents active for a token."""
    num_tokens: int = 1_000_000
    """Tokens to train on, rounded up to whole steps."""
    batch_size: int = 64
    """Windows that the teacher reads in a step."""
    tokens_per_update: int = 1024
    """Tokens in one optimizer step."""
    num_windows: int | None = None
    """Train on the first so many windows; by default all."""
    learning_rate: float | None = None
    """Adam's; by default 1e-3 / sqrt(num_latents / 2^14)."""
    dead_after_tokens: int = 100_000
    """A latent that was not active for so many tokens is dead, and the auxiliary loss works on it."""
    num_auxiliary_latents: int = 64
    """Dead latents that the auxiliary loss uses for a token."""
    max_validation_windows: int | None = None
    """Measure quality on so many evenly spaced validation windows; by default on all."""
    seed: int = 0
    """Seed of the initial weights and the order of tokens."""
    checkpoint_every_steps: int = 25
    """Steps between checkpoints."""
    overwrite: bool = False
    """Replace what a former run left in the output folder."""

    def __post_init__(self) -> None:
        require_at_least(1, self, "num_latents", "k", "num_tokens", "batch_size", "tokens_per_update", "num_windows")
        require_at_least(1, self, "max_validation_windows", "checkpoint_every_steps")
        if self.k > self.num_latents:
            raise CocomixError(f"k is {self.k}; it must be at most num_latents ({self.num_latents})")


def train_sae(config: TrainSaeConfig) -> artifacts.Manifest:
    """Train an autoencoder, continue an interrupted run, or recognise a finished one; facts hold its quality."""
    data = TokenDataset(config.data, "train")
    settings = dataclasses.asdict(config)
    for name in ("teacher", "data", "output", "overwrite", "checkpoint_every_steps"):
        del settings[name]
    settings["num_windows"] = min(config.num_windows or data.num_windows, data.num_windows)
    settings["inputs"] = {"data": data.fingerprint, "teacher": artifacts.fingerprint_of_path(config.teacher)}
    with artifacts.begin(config.output, KIND, settings, overwrite=config.overwrite) as finished:
        if finished:
            say(f"{config.output}: the autoencoder is finished already")
            Checkpoints(config.output).clear()
            return finished
        return _Run(config, data, settings["num_windows"]).finish()


class _Run:
    def __init__(self, config: TrainSaeConfig, data: TokenDataset, num_windows: int) -> None:
        self.config, self.data, self.num_windows = config, data, num_windows
        self.teacher = Teacher(load_teacher(config.teacher), config.layer)
        data.check_model(config.teacher, self.teacher.model.config.vocab_size)
        D, C = self.teacher.model.config.hidden_size, config.num_latents
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(config.seed)
            self.sae = SparseAutoencoder(SparseAutoencoderConfig(D, C, config.k))
        rate = config.learning_rate or LEARNING_RATE_AT_2_14 / (C / 2**14) ** 0.5
        self.max_learning_rate = rate
        self.optimizer = torch.optim.Adam(self.sae.parameters(), lr=rate, betas=(0.9, 0.999), eps=6.25e-10, fused=True)
        self.tokens_since_active = torch.zeros(C, dtype=torch.long)
        self.tokens_per_step = config.batch_size * data.context_length
        self.num_steps = -(-config.num_tokens // self.tokens_per_step)
        self.checkpoints = Checkpoints(config.output)
        self.step, self.seconds = 0, 0.0
        latest = self.checkpoints.latest()
        if latest is None:
            self._start_bias()
            return
        tensors, meta = latest
        self.tokens_since_active = tensors.pop("tokens_since_active")
        restore_state(self.sae, self.optimizer, tensors)
        self.step, self.seconds = meta["step"], meta["seconds"]
        say(f"continuing {config.output} at step {self.step:,} of {self.num_steps:,}")

    def finish(self) -> artifacts.Manifest:
        config = self.config
        with ProgressLine(
            f"training {config.output.name}",
            self.num_steps * self.tokens_per_step,
            completed=self.step * self.tokens_per_step,
        ) as progress:
            while self.step < self.num_steps:
                started = time.perf_counter()
                fvu = self._train_step()
                self.step += 1
                self.seconds += time.perf_counter() - started
                dead = int((self.tokens_since_active > config.dead_after_tokens).sum())
                progress.advance(self.tokens_per_step, fvu=float(fvu), l0=config.k, dead=dead)
                if self.step % config.checkpoint_every_steps == 0 and self.step < self.num_steps:
                    tensors = state_of(self.sae, self.optimizer) | {"tokens_since_active": self.tokens_since_active}
                    self.checkpoints.save(self.step, tensors, {"seconds": self.seconds})
        self.sae.eval().requires_grad_(False)
        self.sae.save_pretrained(config.output)
        validation = TokenDataset(config.data, "validation")
        quality = sae_quality(self.teacher, self.sae, validation, max_windows=config.max_validation_windows)
        facts: dict[str, Any] = {
            "train_tokens": self.num_steps * self.tokens_per_step,
            "train_seconds": round(self.seconds, 3),
            "quality": dataclasses.asdict(quality),
        }
        manifest = artifacts.finish(config.output, facts)
        self.checkpoints.clear()
        return manifest

    def _activations(self, step: int) -> Float[Tensor, "N D"]:
        """Residual streams of one step's windows, in random order of tokens."""
        windows = windows_of_step(self.config.seed, step, self.config.batch_size, self.num_windows)
        h = self.teacher.residual(self.data.input_ids(windows)).flatten(0, 1)
        generator = torch.Generator().manual_seed(self.config.seed * 1_000_003 + step)
        return h[torch.randperm(len(h), generator=generator)]

    def _train_step(self) -> Tensor:
        """Optimizer steps on one step's tokens; returns the last one's FVU."""
        fvu = torch.zeros(())
        for group in self.optimizer.param_groups:
            # Constant, then linear to zero over the last fifth, as usual for dictionaries.
            group["lr"] = self.max_learning_rate * min(1.0, (self.num_steps - self.step) / (0.2 * self.num_steps))
        for h in self._activations(self.step).split(self.config.tokens_per_update):
            fvu = self._update(h)
        return fvu

    def _update(self, h: Float[Tensor, "N D"]) -> Tensor:
        """One optimizer step: FVU plus the auxiliary loss of dead latents (Gao et al., appendix A.2)."""
        sae, config = self.sae, self.config
        x, _, _ = sae.normalize(h)
        z = F.linear(x - sae.decoder_bias, sae.encoder_weight, sae.encoder_bias)  # (N, C)
        values, indices = z.topk(config.k, dim=-1)
        error = x - sae.sum_rows(indices, values.relu()) - sae.decoder_bias
        variance = (x - x.mean(0)).pow(2).sum()
        fvu = error.pow(2).sum() / variance
        loss = fvu
        self.tokens_since_active += len(h)
        self.tokens_since_active[indices[values > 0]] = 0
        dead = self.tokens_since_active > config.dead_after_tokens
        num_auxiliary = min(config.num_auxiliary_latents, int(dead.sum()))
        if num_auxiliary:
            # The dead latents' own best reconstruction of what the living ones left.
            values, indices = z.masked_fill(~dead, -torch.inf).topk(num_auxiliary, dim=-1)
            residual = error.detach()
            left = (residual - sae.sum_rows(indices, values.relu())).pow(2).sum() / residual.pow(2).sum()
            loss = loss + AUXILIARY_LOSS_WEIGHT * left
        loss.backward()
        self._project_decoder_gradient()
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        sae.normalize_decoder()
        return fvu.detach()

    @torch.no_grad()
    def _project_decoder_gradient(self) -> None:
        """Remove what would only change the length of a decoder row: rows are kept at unit norm."""
        weight, grad = self.sae.decoder_weight, self.sae.decoder_weight.grad
        assert grad is not None
        grad -= (grad * weight).sum(-1, keepdim=True) * weight

    @torch.no_grad()
    def _start_bias(self) -> None:
        """Start the decoder's bias at the geometric median of the first step's activations."""
        x, _, _ = self.sae.normalize(self._activations(0))
        self.sae.decoder_bias.copy_(geometric_median(x))


def geometric_median(x: Float[Tensor, "N D"], num_iterations: int = 20) -> Float[Tensor, " D"]:
    """The point with the least summed distance to all rows (Weiszfeld's algorithm)."""
    median = x.mean(0)
    for _ in range(num_iterations):
        weights = 1 / (x - median).norm(dim=-1, keepdim=True).clamp(min=1e-6)
        median = (weights * x).sum(0) / weights.sum()
    return median
