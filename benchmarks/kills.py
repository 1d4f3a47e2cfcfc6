"""`kill -9` at twenty random moments of one training run: the same command then ends with the bits of an undisturbed run.

    python -m benchmarks.kills --work runs/kills --output benchmarks/results/kills.json

A smoke demo makes data and labels. One CoCoMix run on them goes undisturbed; another is killed and started again, at moments
drawn from the whole life of its process: imports, checks, steps, validation, checkpoints. Weights and metrics are compared.
"""

from __future__ import annotations

import argparse
import random
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from cocomix.base.artifacts import sha256_of_file, write_json
from cocomix.training.metrics import read_metrics

TIMES = frozenset({"train_seconds", "tokens_per_second"})
#: Of the undisturbed run's training: the longest that one attempt may get ahead, so that no attempt finishes.
LONGEST_ADVANCE = 1 / 12


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True, help="folder for the demo and the two runs, emptied first")
    parser.add_argument("--output", type=Path, required=True, help="JSON file of the result")
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--num-tokens", type=int, default=100_000)
    parser.add_argument("--seed", type=int, default=0, help="of the moments of the kills")
    arguments = parser.parse_args()
    work: Path = arguments.work
    shutil.rmtree(work, ignore_errors=True)
    cocomix = [sys.executable, "-m", "cocomix.cli.main"]
    subprocess.run([*cocomix, "demo", "--output", str(work / "demo"), "--size", "smoke"], check=True)
    train = [*cocomix, "train", "--data", str(work / "demo" / "data"), "--labels", str(work / "demo" / "concepts")]
    train += ["--student.mixer", "concept", "--num-tokens", str(arguments.num_tokens), "--micro-batch-size", "4"]
    train += ["--checkpoint-every-steps", "10", "--output"]

    started = time.monotonic()
    whole, killed = work / "undisturbed", work / "killed"
    subprocess.run([*train, str(whole)], check=True)
    train_seconds = read_metrics(whole)[-1]["train_seconds"]
    start_seconds = time.monotonic() - started - train_seconds
    rng = random.Random(arguments.seed)
    longest = start_seconds + LONGEST_ADVANCE * train_seconds
    kills = [kill([*train, str(killed)], killed, rng.uniform(0.0, longest)) for _ in range(arguments.kills)]
    subprocess.run([*train, str(killed)], check=True)

    weights_equal = sha256_of_file(whole / "model.safetensors") == sha256_of_file(killed / "model.safetensors")
    metrics_equal = untimed(whole) == untimed(killed)
    write_json(
        arguments.output,
        {
            "command": "python -m benchmarks.kills --work runs/kills --output benchmarks/results/kills.json",
            "kills": kills,
            "num_kills": sum(kill["was_running"] for kill in kills),
            "num_steps": read_metrics(whole)[-1]["step"],
            "weights_equal": weights_equal,
            "metrics_equal": metrics_equal,
        },
    )
    if not (weights_equal and metrics_equal):
        sys.exit("the runs differ")


def kill(words: list[str], output: Path, delay_seconds: float) -> dict[str, Any]:
    """Start the run, kill it after a while, and say what it left."""
    process = subprocess.Popen(words, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
    time.sleep(delay_seconds)
    was_running = process.poll() is None
    process.kill()
    process.wait()
    left = sorted(path.name for path in output.glob("checkpoints/*"))
    steps = [int(name.removeprefix("step-")) for name in left if name.startswith("step-")]
    return {
        "delay_seconds": round(delay_seconds, 3),
        "was_running": was_running,
        "newest_checkpoint": max(steps, default=0),
        "half_written": any(name.endswith(".partial") for name in left),
    }


def untimed(run: Path) -> list[dict[str, float]]:
    """Metrics without times."""
    return [{name: value for name, value in line.items() if name not in TIMES} for line in read_metrics(run)]


if __name__ == "__main__":
    main()
