"""Concept head and vocabulary loss: CPU seconds of a forward and backward on one thread, by the memory of a chunk's logits.

    python -m benchmarks.heads --output benchmarks/results/heads.json

The concept head has C = 32,768 concepts, 32 of them active, and 4 labels a row; the vocabulary has 50,257 or 2,048 tokens.
`plain` is `cross_entropy` of all logits. Width 512, 1,024 rows, float32. Variants run in turn in one process; CPU seconds,
because other processes on the machine take time but none of these; medians.
"""

from __future__ import annotations

import argparse
import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path

from cocomix.base.artifacts import write_json
from cocomix.base.host import tune_process

NUM_ROWS, WIDTH = 1024, 512
NUM_CONCEPTS, NUM_ACTIVE, NUM_LABELS = 32768, 32, 4


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, required=True, help="JSON file of the result")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--megabytes", type=int, nargs="+", default=[16, 64, 128])
    arguments = parser.parse_args()
    tune_process()
    import torch

    torch.set_num_threads(1)
    torch.manual_seed(0)
    found = {"concept head": timed(concept_head(arguments.megabytes), arguments.rounds)}
    for num_tokens in (50257, 2048):
        found[f"vocabulary of {num_tokens}"] = timed(vocabulary(num_tokens, arguments.megabytes), arguments.rounds)
    result = {
        "command": f"python -m benchmarks.heads --rounds {arguments.rounds} "
        f"--megabytes {' '.join(map(str, arguments.megabytes))} --output {arguments.output.name}",
        "median_cpu_seconds": found,
        "machine": {"python": platform.python_version(), "torch": torch.__version__},
    }
    write_json(arguments.output, result)


def concept_head(megabytes: list[int]) -> dict[str, Callable[[], object]]:
    import torch

    from cocomix.mixers.head import predict_concepts

    x, weight, bias = torch.randn(NUM_ROWS, WIDTH), 0.02 * torch.randn(NUM_CONCEPTS, WIDTH), torch.zeros(NUM_CONCEPTS)
    leaves = [leaf.requires_grad_(True) for leaf in (x, weight, bias)]
    labels = torch.randint(NUM_CONCEPTS, (NUM_ROWS, NUM_LABELS))
    upstream = torch.randn(NUM_ROWS, NUM_ACTIVE)

    def run(size: int, labels: torch.Tensor | None) -> object:
        values, _, loss = predict_concepts(*leaves, NUM_ACTIVE, labels, logits_megabytes=size)
        return torch.autograd.grad((values * upstream).sum() + loss, leaves)

    variants: dict[str, Callable[[], object]] = {
        f"{size} MB": lambda size=size: run(size, labels) for size in megabytes
    }
    return variants | {"without labels": lambda: run(megabytes[0], None)}


def vocabulary(num_tokens: int, megabytes: list[int]) -> dict[str, Callable[[], object]]:
    import torch
    from torch.nn import functional as F

    from cocomix.mixers.linear_head import linear_head

    leaves = [
        torch.randn(NUM_ROWS, WIDTH, requires_grad=True),
        torch.randn(num_tokens, WIDTH).mul_(0.02).requires_grad_(),
    ]
    targets = torch.randint(num_tokens, (NUM_ROWS,))

    def plain() -> object:
        return torch.autograd.grad(F.cross_entropy(F.linear(*leaves), targets, reduction="sum"), leaves)

    def chunked(size: int) -> object:
        return torch.autograd.grad(linear_head(*leaves, labels=targets.unsqueeze(-1), logits_megabytes=size)[2], leaves)

    variants: dict[str, Callable[[], object]] = {"plain": plain}
    return variants | {f"{size} MB": lambda size=size: chunked(size) for size in megabytes}


def timed(variants: dict[str, Callable[[], object]], rounds: int) -> dict[str, float]:
    """Median CPU seconds of each, in turn; the first round is left out."""
    seconds: dict[str, list[float]] = {name: [] for name in variants}
    for turn in range(rounds + 1):
        for name, run in variants.items():
            begun = time.process_time()
            run()
            if turn:
                seconds[name].append(time.process_time() - begun)
    medians = {name: statistics.median(some) for name, some in seconds.items()}
    print(medians, flush=True)
    return medians


if __name__ == "__main__":
    main()
