"""`cocomix distill-targets`: tokens drawn from a teacher's predictions, once, shard by shard (`data/shard_work.py`).

A student that fits the draws' histogram instead of the whole distribution p has the right gradient in the mean (Anshumann et
al., arXiv 2503.16870); with the largest probabilities alone the gradient would be biased. The K draws of a position are
stratified: the k-th takes a uniform number of [k / K, (k + 1) / K) through the inverse of p's distribution function. Like the
histogram of independent draws, theirs has the mean p, and its variance is no greater.

Draws are a function of the teacher's prediction and of (seed, window), so shards, ranks and interruptions don't matter.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Float64, Int64
from torch import Tensor

from cocomix.base import artifacts
from cocomix.base.devices import Machine
from cocomix.base.errors import CocomixError
from cocomix.base.hub import local_model
from cocomix.base.kinds import DISTILLATION_TARGETS
from cocomix.data.shard_work import ShardWork, finish_work, machine_of_ranks
from cocomix.data.shards import shard_name
from cocomix.data.target_dataset import SampledTargets, write_targets
from cocomix.data.token_dataset import TokenDataset
from cocomix.labels.config import DistillTargetsConfig
from cocomix.labels.passes import most_windows, windows_per_pass
from cocomix.modeling.backbones import adapter_for
from cocomix.modeling.flops import causal_lm_flops_per_token
from cocomix.modeling.loading import check_data, product_size
from cocomix.modeling.losses import at_least_float32
from cocomix.modeling.teacher import Teacher, load_teacher

# Shapes: B windows, T tokens, P = T - 1 positions with a next token, N rows, V vocabulary, K draws a position.

#: Elements of one chunk's probabilities: 64 MB in float64, a few times over.
CHUNK_ELEMENTS = 2**23


def distill_targets(config: DistillTargetsConfig) -> artifacts.Manifest:
    """Draw the targets, continue an interrupted run, or recognise a finished one; alone or under `torchrun`."""
    config = dataclasses.replace(config, teacher=local_model(config.teacher))
    data = TokenDataset(config.data, "train")
    num_windows = config.num_windows or data.num_windows
    if num_windows > data.num_windows:
        raise CocomixError(f"num_windows is {num_windows}, but {config.data} has {data.num_windows} training windows")
    size = functools.partial(product_size, config.teacher, (config.batch_size or 1) * data.context_length)
    with machine_of_ranks(config.compute, size, config.output) as machine, machine.products():
        return _draw_all(config, data, num_windows, machine)


def _draw_all(
    config: DistillTargetsConfig, data: TokenDataset, num_windows: int, machine: Machine
) -> artifacts.Manifest:
    @functools.cache
    def teacher() -> Teacher:
        """Opened below its head; loaded when it is first needed."""
        model = load_teacher(config.teacher, machine)
        check_data(model, config.teacher, data)
        return Teacher(model, adapter_for(model).num_blocks - 1)

    settings: dict[str, Any] = {
        "data": data.parts,
        "teacher": artifacts.fingerprint_of_path(config.teacher),
        **config.settings(),
        **machine.settings,
        "num_windows": num_windows,
        "batch_size": windows_per_pass(config, lambda: most_windows(teacher().residual, machine, data.context_length)),
    }
    return finish_work(
        config.output,
        DISTILLATION_TARGETS,
        settings,
        lambda: _Shards(config, data, settings, teacher()),
        overwrite=config.overwrite,
    )


class _Shards(ShardWork):
    """The shards of one dataset of targets."""

    description = "drawing distillation targets"

    def __init__(
        self, config: DistillTargetsConfig, data: TokenDataset, settings: Mapping[str, Any], teacher: Teacher
    ) -> None:
        super().__init__(config.output, settings, data.context_length)
        self.config, self.data, self.teacher = config, data, teacher

    def make(self, batches: Iterator[range]) -> SampledTargets:
        parts = [self._draw(batch).to("cpu") for batch in batches]
        return SampledTargets(torch.cat([p.tokens for p in parts]), torch.cat([p.entropy for p in parts]))

    def write(self, index: int, content: SampledTargets) -> dict[str, Any]:
        write_targets(self.folder, index, content, self.data.vocab_size)
        return {"entropy": float(content.entropy.double().sum())}

    def facts(self, receipts: list[dict[str, Any]]) -> dict[str, Any]:
        num_positions = self.num_windows * (self.context_length - 1)
        num_bytes = sum((self.folder / shard_name(index)).stat().st_size for index in range(self.num_shards))
        return {
            "mean_entropy": sum(receipt["entropy"] for receipt in receipts) / num_positions,
            "bytes_per_token": num_bytes / (self.num_windows * self.context_length),
            "flops_per_token": causal_lm_flops_per_token(self.teacher.model, self.context_length),
        }

    def _draw(self, windows: Sequence[int]) -> SampledTargets:
        config, V, device = self.config, self.data.vocab_size, self.teacher.model.device
        hidden = self.teacher.residual(**self.data.windows(windows).to(device).inputs())[:, :-1]
        B, P, _ = hidden.shape
        uniform = torch.from_numpy(np.stack([stratified(config.seed, w, P, config.num_samples) for w in windows]))
        tokens, entropy = [], []
        rows, numbers = hidden.flatten(0, 1), uniform.flatten(0, 1)
        size = max(1, CHUNK_ELEMENTS // V)
        for part, u in zip(rows.split(size), numbers.split(size), strict=True):
            with torch.no_grad():
                logits = at_least_float32(self.teacher.adapter.logits(part.unsqueeze(0)).squeeze(0))
            # Rows beyond the tokenizer's tokens are padding.
            if not bool(logits.isfinite().all()):
                raise CocomixError(f"the logits of {config.teacher} are not finite; there is nothing to draw from")
            drawn, nats = draw(logits[:, :V] / config.temperature, u.to(device))
            tokens.append(drawn)
            entropy.append(nats)
        return SampledTargets(torch.cat(tokens).view(B, P, -1), torch.cat(entropy).view(B, P))


def stratified(seed: int, window: int, num_positions: int, num_samples: int) -> np.ndarray:
    """Uniform numbers of one window, [num_positions, num_samples]: the k-th of a position lies in [k / K, (k + 1) / K)."""
    inside = np.random.default_rng([seed, window]).random((num_positions, num_samples))
    return (np.arange(num_samples) + inside) / num_samples


def draw(
    logits: Float[Tensor, "N V"], uniform: Float64[Tensor, "N K"]
) -> tuple[Int64[Tensor, "N K"], Float[Tensor, " N"]]:
    """Tokens at the given heights of each row's distribution function, and the distribution's entropy in nats."""
    p = logits.double().softmax(-1)
    heights = p.cumsum(-1)
    top = heights[:, -1:]
    below_top = torch.nextafter(top, torch.zeros_like(top))  # a product that rounds up to the top has no token above it
    tokens = torch.searchsorted(heights, torch.minimum(uniform * top, below_top), right=True)
    return tokens, torch.special.entr(p).sum(-1).float()
