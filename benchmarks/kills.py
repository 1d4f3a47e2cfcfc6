"""`kill -9` at twenty random moments of one training run: the same command then ends with the bits of an undisturbed run.

    python -m benchmarks.kills --work runs/kills --output benchmarks/results/kills.json

A smoke demo makes data and labels. One CoCoMix run on them goes undisturbed; another is killed and started again, every
fourth time while it starts (imports, checks, reading its checkpoint), else among its steps, validations and checkpoints.
Weights and metrics are compared.
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
#: Of the undisturbed run's training: the longest that an attempt may go on after its first step, so that none finishes.
LONGEST_ADVANCE = 1 / 25


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True, help="folder for the demo and the two runs, emptied first")
    parser.add_argument("--output", type=Path, required=True, help="JSON file of the result")
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--num-tokens", type=int, default=300_000)
    parser.add_argument("--seed", type=int, default=0, help="of the moments of the kills")
    arguments = parser.parse_args()
    work: Path = arguments.work
    shutil.rmtree(work, ignore_errors=True)
    cocomix = [sys.executable, "-m", "cocomix.cli.main"]
    subprocess.run([*cocomix, "demo", "--output", str(work / "demo"), "--size", "smoke"], check=True)
    train = [*cocomix, "train", "--data", str(work / "demo" / "data"), "--labels", str(work / "demo" / "concepts")]
    train += ["--student.mixer", "concept", "--student.hidden-size", "32", "--student.num-layers", "2"]
    train += ["--num-tokens", str(arguments.num_tokens), "--micro-batch-size", "4", "--checkpoint-every-steps", "10"]
    train += ["--output"]

    started = time.monotonic()
    whole, killed = work / "undisturbed", work / "killed"
    subprocess.run([*train, str(whole)], check=True)
    train_seconds = read_metrics(whole)[-1]["train_seconds"]
    start_seconds = time.monotonic() - started - train_seconds
    rng = random.Random(arguments.seed)
    kills = []
    for number in range(arguments.kills):
        starts = number % 4 == 0
        longest = start_seconds if starts else LONGEST_ADVANCE * train_seconds
        kills.append(kill([*train, str(killed)], killed, rng.uniform(0.0, longest), after_a_line=not starts))
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


def kill(words: list[str], output: Path, delay_seconds: float, *, after_a_line: bool) -> dict[str, Any]:
    """Start the run, kill it after a while, counted from its start or its first new line of metrics; say what it left."""
    metrics = output / "metrics.jsonl"
    process = subprocess.Popen(words, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
    before = metrics.stat().st_mtime_ns if metrics.exists() else 0
    while after_a_line and process.poll() is None:
        if metrics.exists() and metrics.stat().st_size and metrics.stat().st_mtime_ns > before:
            break
        time.sleep(0.01)
    time.sleep(delay_seconds)
    was_running = process.poll() is None
    process.kill()
    process.wait()
    left = sorted(path.name for path in output.glob("checkpoints/*"))
    steps = [int(name.removeprefix("step-")) for name in left if name.startswith("step-")]
    return {
        "delay_seconds": round(delay_seconds, 3),
        "after_a_line": after_a_line,
        "was_running": was_running,
        "newest_checkpoint": max(steps, default=0),
        "half_written": any(name.endswith(".partial") for name in left),
    }


def untimed(run: Path) -> list[dict[str, float]]:
    """Metrics without times."""
    return [{name: value for name, value in line.items() if name not in TIMES} for line in read_metrics(run)]


if __name__ == "__main__":
    main()
