"""Extraction of concept labels against its dense formulation, and with two processes against one.

Both formulations give the paper's labels (gradient at h, loss of all later tokens, top of +a). The dense one is the obvious
one: a plain forward pass with a hook, a full backward pass with parameter gradients, a dense [B, T, C] activation and
attribution, and a dense top-k.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import GPT2LMHeadModel

from cocomix.base.errors import CocomixError
from cocomix.labels.attribution import ConceptExtractor
from cocomix.labels.config import AttributionConfig
from cocomix.mixers.config import NoMixerConfig
from cocomix.sae.model import SparseAutoencoder, SparseAutoencoderConfig
from cocomix.tools.bench.extract_ranks import RanksShape, time_ranks
from cocomix.tools.bench.memory import Work, peak_bytes
from cocomix.tools.bench.report import Section, memory, ratio, seconds
from cocomix.tools.bench.students import student_config
from cocomix.tools.bench.timing import interleaved, paired_ratio, spread_of

ATTRIBUTION = AttributionConfig(criterion="attribution", num_labels=4)
#: Tolerance for labels that differ, since sums in another order can round differently and swap two nearly equal scores.
MAX_SHARE_OF_OTHER_LABELS = 0.002


@dataclass(frozen=True)
class ExtractShape:
    """Sizes of the measurement; the defaults are those of GPT-2 small and its published autoencoder."""

    num_blocks: int = 12
    width: int = 768
    num_heads: int = 12
    vocab_size: int = 50257
    layer: int = 5
    num_latents: int = 32768
    num_active: int = 32
    batch: int = 2
    context: int = 256
    device: str = "cpu"
    repetitions: int = 11


SIZES = {
    "default": ExtractShape(),
    "smoke": ExtractShape(
        num_blocks=2,
        width=16,
        num_heads=2,
        vocab_size=64,
        layer=0,
        num_latents=64,
        num_active=8,
        context=16,
        repetitions=2,
    ),
    "69m": ExtractShape(batch=8, context=1024),  # the teacher is the same for both students
}
#: Windows that the processes share, by whether the shape is `smoke`: seconds of work, or almost none.
_RANKS = {False: RanksShape(), True: RanksShape(num_windows=8, windows_per_shard=2, repetitions=1)}


def measure(shape: ExtractShape) -> dict[str, Any]:
    """Time and memory of both formulations, and the speed-up by a second process if there are two cores.

    Raises:
        CocomixError: the labels disagree.
    """
    contestants = _contestants(shape)
    other = float(
        (contestants["fast"]().sort(-1).values != contestants["dense"]().sort(-1).values).any(-1).float().mean()
    )
    if other > MAX_SHARE_OF_OTHER_LABELS:
        raise CocomixError(
            f"the fast path disagrees with its reference: labels differ at {other:.2%} of the positions; nothing is reported"
        )
    times = interleaved(contestants, shape.repetitions)
    has_ranks = shape.device == "cpu" and num_usable_cores() > 1
    names = ("fast", "dense")
    num_tokens = shape.batch * shape.context
    return {
        "shape": asdict(shape),
        "attribution": asdict(ATTRIBUTION),
        "share_of_other_labels": other,
        "seconds": {name: asdict(spread_of(values)) for name, values in times.items()},
        "tokens_per_second": {name: num_tokens / spread_of(values).median for name, values in times.items()},
        "dense_over_fast": asdict(paired_ratio(times, "dense", "fast")),
        "peak_bytes": dict(zip(names, peak_bytes("extract", [(name, shape) for name in names]), strict=True)),
        "ranks": _ranks(_RANKS[shape == SIZES["smoke"]]) if has_ranks else None,
    }


def work(variant: str, shape: ExtractShape) -> Work:
    """Work that labels one batch of windows once."""
    contestant = _contestants(shape)[variant]

    def run() -> int:
        contestant()
        return 0

    return run


def num_usable_cores() -> int:
    """Number of cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _ranks(shape: RanksShape) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder:
        times = time_ranks(Path(folder), shape)
    return {
        "shape": asdict(shape),
        "seconds": {name: asdict(spread_of(values)) for name, values in times.items()},
        "one_over_two": asdict(paired_ratio(times, "one", "two")),
    }


def _contestants(shape: ExtractShape) -> dict[str, Callable[[], Tensor]]:
    """Both formulations, as functions that label the same windows with the same models."""
    config = student_config(
        width=shape.width,
        num_blocks=shape.num_blocks,
        num_heads=shape.num_heads,
        vocab_size=shape.vocab_size,
        num_positions=1024,
        mixer=NoMixerConfig(),
    )
    torch.manual_seed(0)
    model = GPT2LMHeadModel(config.backbone_config).eval().to(shape.device)
    sae = SparseAutoencoder(SparseAutoencoderConfig(shape.width, shape.num_latents, shape.num_active)).to(shape.device)
    ids = torch.randint(shape.vocab_size, (shape.batch, shape.context)).to(shape.device)

    def fast() -> Tensor:
        model.requires_grad_(False)
        return ConceptExtractor(model, sae.requires_grad_(False), shape.layer, ATTRIBUTION)(ids)

    def dense() -> Tensor:
        model.requires_grad_(True)
        return dense_labels(model, sae, shape.layer, ids)

    return {"fast": fast, "dense": dense}


def dense_labels(model: nn.Module, sae: SparseAutoencoder, layer: int, ids: Tensor) -> Tensor:
    """Labels [B, T, A] of token ids [B, T], in the dense formulation."""
    kept: list[Tensor] = []

    def keep(_module: nn.Module, _inputs: object, output: Tensor) -> None:
        output.retain_grad()
        kept.append(output)

    handle = model.transformer.h[layer].register_forward_hook(keep)  # type: ignore[union-attr, index]
    logits = model(ids, use_cache=False).logits
    handle.remove()
    F.cross_entropy(logits[:, :-1].flatten(0, 1), ids[:, 1:].flatten(), reduction="sum").backward()
    (h,) = kept
    gradient = h.grad
    assert gradient is not None
    with torch.no_grad():
        x, _, std = sae.normalize(h)
        z = F.linear(x - sae.decoder_bias, sae.encoder_weight, sae.encoder_bias)  # (B, T, C)
        values, indices = z.topk(sae.config.num_active_latents or 1, dim=-1)
        c = torch.zeros_like(z).scatter(-1, indices, values.relu())
        a = c * (gradient @ sae.decoder_weight.t()) * std
        best = a.topk(ATTRIBUTION.num_labels, dim=-1)
        labels = best.indices.masked_fill(best.values <= 0, -100)
    model.zero_grad(set_to_none=True)
    labels[:, -1] = -100
    return labels


def describe(result: dict[str, Any]) -> Section:
    """A section with a row for each formulation."""
    shape, ranks = result["shape"], result["ranks"]
    names = {"fast": "`cocomix extract`", "dense": "dense formulation"}
    rows = [
        [
            label,
            seconds(result["seconds"][name]),
            f"{result['tokens_per_second'][name]:.0f}",
            memory(result["peak_bytes"][name]),
        ]
        for name, label in names.items()
    ]
    shared = "Two processes were not measured."
    if ranks is not None:
        shared = (
            f"Two processes extract {ranks['shape']['num_windows']:,} windows of a small dataset "
            f"**{ratio(ranks['one_over_two'])}** times as fast as one, each with one thread, start-up left out "
            f"({seconds(ranks['seconds']['two'])} against {seconds(ranks['seconds']['one'])})."
        )
    return Section(
        "Extraction",
        f"Labels as the paper's code chooses them, of {shape['batch']} windows of {shape['context']} tokens: a decoder of "
        f"{shape['num_blocks']} blocks, width {shape['width']} and {shape['vocab_size']:,} tokens, a dictionary of "
        f"{shape['num_latents']:,} latents after block {shape['layer']}. The dense formulation runs a full backward with "
        "parameter gradients, a dense attribution and a dense top-k; labels differ at "
        f"{result['share_of_other_labels']:.2%} of the positions. Extraction is **{ratio(result['dense_over_fast'])}** times "
        f"as fast; memory is the peak beyond the models. {shared}",
        ["", "a batch", "tokens a second", "memory"],
        rows,
    )
