"""Training of an autoencoder on given activations, against a dense formulation and, if installed, eai-sparsify.

All perform the same updates on the same activations, with the same width, number of latents, k and optimizer (Adam).
sparsify's update is that of its trainer with `optimizer="adam"`, without reading a model and without logging.
"""

from __future__ import annotations

import contextlib
import importlib.metadata
import io
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from cocomix.sae.model import SparseAutoencoder, SparseAutoencoderConfig
from cocomix.sae.update import SaeUpdater
from cocomix.tools.bench.agreement import require_agreement
from cocomix.tools.bench.report import Section, ratio, seconds
from cocomix.tools.bench.timing import interleaved, paired_ratio, spread_of

LEARNING_RATE = 1e-4
#: Tolerance for float32 sums over tokens and latents in another order, relative to each gradient's largest element.
TOLERANCE = 1e-4
#: Distribution of the library to compare with; another distribution also has a module `sparsify`.
DISTRIBUTION = "eai-sparsify"


@dataclass(frozen=True)
class SaeShape:
    """Sizes of the measurement; the defaults are GPT-2 small's width and the size of its published autoencoder."""

    width: int = 768
    num_latents: int = 32768
    k: int = 32
    tokens_per_update: int = 1024
    repetitions: int = 9


SIZES = {"default": SaeShape(), "smoke": SaeShape(width=16, num_latents=64, k=4, tokens_per_update=48, repetitions=2)}

Update = Callable[[], object]


def measure(shape: SaeShape) -> dict[str, Any]:
    """Time of an update by each contestant.

    Raises:
        CocomixError: the gradients of an update differ from the dense formulation's.
    """
    h = torch.randn(shape.tokens_per_update, shape.width, generator=torch.Generator().manual_seed(1))
    updater, reference = _updater(shape), _updater(shape)
    contestants: dict[str, Update] = {
        "fast": lambda: updater.update(h, shape.tokens_per_update, LEARNING_RATE),
        "dense": lambda: dense_update(reference, h),
    }
    for update in contestants.values():
        update()
    difference = require_agreement(_moments(updater), _moments(reference), TOLERANCE)
    sparsify = None
    with contextlib.suppress(importlib.metadata.PackageNotFoundError):
        sparsify = importlib.metadata.version(DISTRIBUTION)
    if sparsify is not None:
        contestants["sparsify"] = _sparsify_update(shape, h)
    times = interleaved(contestants, shape.repetitions)
    return {
        "shape": asdict(shape),
        "optimizer": "Adam",
        "tolerance": TOLERANCE,
        "largest_difference": difference,
        "sparsify_version": sparsify,
        "seconds": {name: asdict(spread_of(values)) for name, values in times.items()},
        "tokens_per_second": {
            name: shape.tokens_per_update / spread_of(values).median for name, values in times.items()
        },
        "dense_over_fast": asdict(paired_ratio(times, "dense", "fast")),
        "sparsify_over_fast": None if sparsify is None else asdict(paired_ratio(times, "sparsify", "fast")),
    }


def _updater(shape: SaeShape) -> SaeUpdater:
    torch.manual_seed(0)
    sae = SparseAutoencoder(SparseAutoencoderConfig(shape.width, shape.num_latents, shape.k))
    # As with sparsify's default, no latent dies in a run this short.
    return SaeUpdater(sae, shape.k, dead_after_tokens=10_000_000, num_auxiliary_latents=shape.width // 2)


def _moments(updater: SaeUpdater) -> dict[str, Tensor]:
    """Adam's first moments, which after one update are a tenth of the gradients."""
    return {
        f"the gradient of {name}": updater.optimizer.state[parameter]["exp_avg"]
        for name, parameter in updater.sae.named_parameters()
    }


def dense_update(updater: SaeUpdater, h: Tensor) -> None:
    """An update in the dense formulation: all C latents, most of them zero, times the decoder.

    Args:
        updater: updater that holds the autoencoder and the optimizer.
        h: residual streams [N, D].
    """
    sae, k = updater.sae, updater.k
    updater.optimizer.param_groups[0]["lr"] = LEARNING_RATE
    x, _, _ = sae.normalize(h)
    z = F.linear(x - sae.decoder_bias, sae.encoder_weight, sae.encoder_bias)  # (N, C)
    values, indices = z.topk(k, dim=-1)
    c = torch.zeros_like(z).scatter(-1, indices, values.relu())
    error = x - (c @ sae.decoder_weight + sae.decoder_bias)
    (error.pow(2).sum() / (x - x.mean(0)).pow(2).sum()).backward()
    weight, gradient = sae.decoder_weight.data, sae.decoder_weight.grad
    assert gradient is not None
    gradient -= (gradient * weight).sum(-1, keepdim=True) * weight
    updater.optimizer.step()
    updater.optimizer.zero_grad(set_to_none=True)
    weight /= weight.norm(dim=-1, keepdim=True)


def _sparsify_update(shape: SaeShape, h: Tensor) -> Update:
    """sparsify's update, with the same steps as in its trainer."""
    with contextlib.redirect_stdout(io.StringIO()):  # on import it prints which decoder it uses
        from sparsify import SparseCoder, SparseCoderConfig

    torch.manual_seed(0)
    coder = SparseCoder(shape.width, SparseCoderConfig(num_latents=shape.num_latents, k=shape.k))
    optimizer = torch.optim.Adam(coder.parameters(), lr=LEARNING_RATE)
    tokens_since_fired = torch.zeros(shape.num_latents, dtype=torch.long)
    did_fire = torch.zeros(shape.num_latents, dtype=torch.bool)

    def update() -> None:
        coder.set_decoder_norm_to_unit_norm()
        total_variance = (h - h.mean(0)).pow(2).sum()
        out = coder(x=h, y=h, dead_mask=None, total_variance=total_variance)
        did_fire[out.latent_indices.flatten()] = True
        (out.fvu + out.multi_topk_fvu / 8).backward()
        coder.remove_gradient_parallel_to_decoder_directions()
        optimizer.step()
        optimizer.zero_grad()
        tokens_since_fired.add_(len(h))
        tokens_since_fired[did_fire] = 0
        did_fire.zero_()

    return update


def describe(result: dict[str, Any]) -> Section:
    """A section with a row for each contestant."""
    shape, version = result["shape"], result["sparsify_version"]
    names = {"fast": "`cocomix train-sae`", "dense": "dense formulation", "sparsify": f"{DISTRIBUTION} {version}"}
    rows = [
        [label, seconds(result["seconds"][name]), f"{result['tokens_per_second'][name]:.0f}"]
        for name, label in names.items()
        if name in result["seconds"]
    ]
    compared = (
        f"{DISTRIBUTION} is not installed (`pip install {DISTRIBUTION}`), so nothing is said of it."
        if version is None
        else f"It trains on **{ratio(result['sparsify_over_fast'])}** times {DISTRIBUTION}'s tokens a second."
    )
    return Section(
        "Training an autoencoder",
        f"{shape['num_latents']:,} latents on activations of width {shape['width']}, k = {shape['k']}, "
        f"{shape['tokens_per_update']:,} tokens an update, Adam, float32; activations are given, and no latent is dead. "
        f"Training is **{ratio(result['dense_over_fast'])}** times as fast as the dense formulation; gradients equal its to "
        f"{result['largest_difference']:.0e} of the largest element. {compared}",
        ["", "an update", "tokens a second"],
        rows,
    )
