"""What settings of the process are worth on a CPU: training steps at the demo's size under each of them.

    python -m benchmarks.host --output benchmarks/results/host.json

An allocator is fixed when a process starts, so every setting is a process of its own; they live side by side and take some
steps each in turn. CPU seconds of one thread, system time included, so that other processes on the machine count little.
The paired ratios are those of one round's seconds, glibc's allocator as it is over the setting.
"""

from __future__ import annotations

import argparse
import os
import platform
import statistics
import subprocess
import sys
import time
from contextlib import ExitStack
from pathlib import Path

from cocomix.base.artifacts import write_json
from cocomix.base.host import tune_process

JEMALLOC = "/usr/lib/x86_64-linux-gnu/libjemalloc.so.2"
JEMALLOC_KEEPS = {"LD_PRELOAD": JEMALLOC, "MALLOC_CONF": "dirty_decay_ms:-1,muzzy_decay_ms:-1"}
#: By name: whether the process tunes itself, and what is in its environment.
SETTINGS: dict[str, tuple[bool, dict[str, str]]] = {
    "glibc": (False, {}),
    "tuned": (True, {}),
    "tuned, huge pages of torch": (True, {"THP_MEM_ALLOC_ENABLE": "1"}),
    "tuned, huge pages of glibc": (True, {"GLIBC_TUNABLES": "glibc.malloc.hugetlb=1"}),
    "tuned, jemalloc": (True, JEMALLOC_KEEPS),
    "tuned, jemalloc, huge pages": (
        True,
        JEMALLOC_KEEPS | {"MALLOC_CONF": JEMALLOC_KEEPS["MALLOC_CONF"] + ",thp:always"},
    ),
}
STEPS_PER_TURN = 3


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, help="JSON file of the result")
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--work", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--tuned", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.work:
        work(is_tuned=arguments.tuned)
        return
    if arguments.output is None:
        parser.error("--output is needed")
    found = measured(arguments.rounds)
    import torch

    result = {
        "command": f"python -m benchmarks.host --rounds {arguments.rounds} --output {arguments.output.name}",
        "student": "CoCoMix, Llama of width 128, 4 blocks, V = 2048, C = 1024, 8 windows of 128 a step, AdamW, float32",
        "steps_per_turn": STEPS_PER_TURN,
        "settings": {name: environment for name, (_, environment) in SETTINGS.items()},
        "found": found,
        "machine": {"cores": os.cpu_count(), "python": platform.python_version(), "torch": torch.__version__},
    }
    write_json(arguments.output, result)


def measured(rounds: int) -> dict[str, dict[str, float]]:
    """Each setting's median CPU seconds a step, and how many times faster than glibc's allocator as it is."""
    names = [name for name, (_, extra) in SETTINGS.items() if Path(extra.get("LD_PRELOAD", "/")).exists()]
    with ExitStack() as stack:
        workers = {name: stack.enter_context(started(name)) for name in names}
        seconds: dict[str, list[float]] = {name: [] for name in names}
        for turn in range(rounds + 1):
            for name in names if turn % 2 else reversed(names):
                taken = asked(workers[name])
                if turn:
                    seconds[name].append(taken)
        for worker in workers.values():
            assert worker.stdin is not None
            worker.stdin.close()
    found = {}
    for name, some in seconds.items():
        ratios = [plain / mine for plain, mine in zip(seconds["glibc"], some, strict=True)]
        found[name] = {
            "cpu_seconds_per_step": statistics.median(some) / STEPS_PER_TURN,
            "median_ratio": statistics.median(ratios),
            "lower_quartile": statistics.quantiles(ratios)[0],
            "upper_quartile": statistics.quantiles(ratios)[2],
        }
        print(f"{name}: {found[name]['median_ratio']:.3f} times glibc")
    return found


def started(name: str) -> subprocess.Popen[str]:
    is_tuned, extra = SETTINGS[name]
    command = [sys.executable, "-m", "benchmarks.host", "--work", *(["--tuned"] if is_tuned else [])]
    environment = os.environ | {"OMP_NUM_THREADS": "1"} | extra
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment)


def asked(worker: subprocess.Popen[str]) -> float:
    """CPU seconds of one turn of a worker."""
    assert worker.stdin is not None
    assert worker.stdout is not None
    worker.stdin.write("\n")
    worker.stdin.flush()
    return float(worker.stdout.readline())


def work(*, is_tuned: bool) -> None:
    """Some training steps for every line that comes in; prints their CPU seconds."""
    if is_tuned:
        tune_process()
    import torch
    from transformers import LlamaConfig

    from cocomix import CoCoMixConfig, CoCoMixForCausalLM

    torch.manual_seed(0)
    decoder = LlamaConfig(
        vocab_size=2048, hidden_size=128, intermediate_size=352, num_hidden_layers=4, num_attention_heads=4
    )
    model = CoCoMixForCausalLM(CoCoMixConfig(decoder, num_concepts=1024, num_active_concepts=32)).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    ids, concepts = torch.randint(2048, (8, 128)), torch.randint(1024, (8, 128, 4))
    for _ in sys.stdin:
        begun = time.process_time()
        for _ in range(STEPS_PER_TURN):
            model(input_ids=ids, labels=ids, concept_labels=concepts).loss.backward()
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        print(time.process_time() - begun, flush=True)


if __name__ == "__main__":
    main()
