"""Extraction against the dense formulation: time and peak memory at GPT-2-small shape, random weights.

    python -m benchmarks.extraction --output benchmarks/results/extraction.json

Both give the paper's labels (gradient at h, loss of all later tokens, top of +a). The dense formulation is the obvious one: a
plain forward with a hook, a full backward with parameter gradients, a dense [B, T, C] activation and attribution, a dense
top-k. They run in turn in one process, so that whatever else the machine does meets both, and the median of the paired
ratios is reported; peak memory is that of a process that runs one of them alone, and of one that only builds the models.
Nothing is reported where labels disagree.
"""

from __future__ import annotations

import argparse
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import GPT2Config, GPT2LMHeadModel

from cocomix import AttributionConfig, ConceptExtractor, SparseAutoencoder, SparseAutoencoderConfig
from cocomix.base.artifacts import write_json
from cocomix.base.host import tune_process

ATTRIBUTION = AttributionConfig(criterion="attribution", num_labels=4)
#: Sums in another order round differently, and two nearly equal scores then change places.
MAX_SHARE_OF_OTHER_LABELS = 0.002


@dataclass(frozen=True)
class Shape:
    """What is measured on; the defaults are those of GPT-2 small and its published dictionary."""

    num_blocks: int = 12
    width: int = 768
    num_heads: int = 12
    vocab_size: int = 50257
    layer: int = 5
    num_latents: int = 32768
    num_active: int = 32
    batch: int = 2
    context: int = 256


SHAPES = {
    "gpt2-small": Shape(),
    "small": Shape(
        num_blocks=4, width=128, num_heads=4, vocab_size=2048, layer=1, num_latents=4096, num_active=16, context=128
    ),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, required=True, help="JSON file of the result")
    parser.add_argument("--shape", choices=list(SHAPES), default="gpt2-small")
    parser.add_argument("--repetitions", type=int, default=15)
    parser.add_argument("--memory-of", choices=["ours", "dense", "none"], help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    tune_process()
    shape = SHAPES[arguments.shape]
    if arguments.memory_of:
        print(peak_bytes(shape, arguments.memory_of))
        return

    ours, dense = contestants(shape)
    other = float((ours().sort(-1).values != dense().sort(-1).values).any(-1).float().mean())
    if other > MAX_SHARE_OF_OTHER_LABELS:
        sys.exit(f"labels disagree at {other:.2%} of the positions: nothing to report")
    seconds = interleaved(ours, dense, arguments.repetitions)
    ratios = [theirs / mine for mine, theirs in zip(*seconds, strict=True)]
    memory = {name: memory_of(arguments.shape, name) for name in ("none", "ours", "dense")}
    num_tokens = shape.batch * shape.context
    result = {
        "command": f"python -m benchmarks.extraction --shape {arguments.shape} --repetitions {arguments.repetitions} "
        f"--output {arguments.output.name}",
        "shape": asdict(shape),
        "attribution": asdict(ATTRIBUTION),
        "share_of_other_labels": other,
        "median_ratio": statistics.median(ratios),
        "ratios": ratios,
        "seconds": {"ours": statistics.median(seconds[0]), "dense": statistics.median(seconds[1])},
        "tokens_per_second": {
            "ours": num_tokens / statistics.median(seconds[0]),
            "dense": num_tokens / statistics.median(seconds[1]),
        },
        "peak_bytes": memory,
        "machine": {
            "cores": os.cpu_count(),
            "threads": torch.get_num_threads(),
            "python": platform.python_version(),
            "torch": torch.__version__,
        },
    }
    write_json(arguments.output, result)
    print(f"{result['median_ratio']:.2f} times the dense formulation; {arguments.output}")


def contestants(shape: Shape) -> tuple[Callable[[], Tensor], Callable[[], Tensor]]:
    """Two functions that label the same windows with the same models."""
    torch.manual_seed(0)
    model = GPT2LMHeadModel(
        GPT2Config(
            n_layer=shape.num_blocks,
            n_embd=shape.width,
            n_head=shape.num_heads,
            vocab_size=shape.vocab_size,
            n_positions=1024,
            bos_token_id=0,
            eos_token_id=0,
        )
    ).eval()
    sae = SparseAutoencoder(SparseAutoencoderConfig(shape.width, shape.num_latents, shape.num_active))
    ids = torch.randint(shape.vocab_size, (shape.batch, shape.context))

    def ours() -> Tensor:
        model.requires_grad_(False)
        return ConceptExtractor(model, sae.requires_grad_(False), shape.layer, ATTRIBUTION)(ids)

    def dense() -> Tensor:
        model.requires_grad_(True)
        return dense_labels(model, sae, shape.layer, ids)

    return ours, dense


def dense_labels(model: nn.Module, sae: SparseAutoencoder, layer: int, ids: Tensor) -> Tensor:
    """Labels as one would first write them down."""
    kept: list[Tensor] = []

    def keep(_module: nn.Module, _inputs: object, output: Tensor) -> None:
        output.retain_grad()
        kept.append(output)

    handle = model.transformer.h[layer].register_forward_hook(keep)
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
        labels = a.masked_fill(a == 0, -torch.inf).topk(ATTRIBUTION.num_labels, dim=-1).indices
    model.zero_grad(set_to_none=True)
    labels[:, -1] = -100
    return labels


def interleaved(
    ours: Callable[[], Tensor], dense: Callable[[], Tensor], repetitions: int
) -> tuple[list[float], list[float]]:
    """Seconds of each, in turn, the order swapped every time; the first of each is left out."""
    seconds: tuple[list[float], list[float]] = ([], [])
    for repetition in range(repetitions + 1):
        order = ((0, ours), (1, dense)) if repetition % 2 else ((1, dense), (0, ours))
        for index, work in order:
            started = time.perf_counter()
            work()
            if repetition:
                seconds[index].append(time.perf_counter() - started)
    return seconds


def memory_of(shape: str, name: str) -> int:
    """Peak memory of a process that labels once, in bytes; `none`: that only builds the models."""
    command = [sys.executable, "-m", "benchmarks.extraction", "--output", os.devnull, "--shape", shape]
    return int(subprocess.run([*command, "--memory-of", name], check=True, capture_output=True, text=True).stdout)


def peak_bytes(shape: Shape, name: str) -> int:
    ours, dense = contestants(shape)
    if name != "none":
        {"ours": ours, "dense": dense}[name]()
    # Not ru_maxrss, which a child process takes over from the one that started it.
    status = Path("/proc/self/status").read_text(encoding="utf-8")
    return int(next(line.split()[1] for line in status.splitlines() if line.startswith("VmHWM"))) * 1024


if __name__ == "__main__":
    main()
