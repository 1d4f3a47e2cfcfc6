"""`kill -9` at twenty random moments of one training run: the same command then ends with the bits of an undisturbed run.

    python -m benchmarks.kills

A smoke demo makes data and labels. One CoCoMix run on them goes undisturbed; another is killed and started again, every
fourth time while it starts (imports, checks, reading its checkpoint), else among its steps, validations and checkpoints.
Weights and metrics are compared. Every kill has to find the run unfinished.
"""

from __future__ import annotations

import json
import random
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from benchmarks.common import options, store, untimed
from cocomix.base.artifacts import MANIFEST_NAME, sha256_of_file
from cocomix.base.kinds import read_metrics

TIMES = frozenset({"train_seconds", "tokens_per_second"})
NUM_KILLS, NUM_TOKENS = 20, 400_000
STEPS_PER_LINE = 10
#: More than an attempt among the steps gets ahead, however late this process sees a line.
MAX_ADVANCE_STEPS = 60


def main() -> None:
    arguments = options("kills", __doc__, "work").parse_args()
    work: Path = arguments.work
    shutil.rmtree(work, ignore_errors=True)
    cocomix = [sys.executable, "-m", "cocomix.cli.main"]
    subprocess.run([*cocomix, "run", "demo-smoke", "--output", str(work / "demo")], check=True)
    train = [*cocomix, "train", "--data", str(work / "demo" / "data"), "--labels", str(work / "demo" / "concepts")]
    train += ["--student.mixer", "concept", "--student.hidden-size", "32", "--student.num-layers", "2"]
    train += ["--num-tokens", str(NUM_TOKENS), "--micro-batch-size", "4", "--checkpoint-every-steps", "10"]
    train += ["--output"]

    started = time.monotonic()
    whole, killed = work / "undisturbed", work / "killed"
    subprocess.run([*train, str(whole)], check=True)
    last = read_metrics(whole)[-1]
    start_seconds = time.monotonic() - started - last["train_seconds"]
    rng = random.Random(0)
    kills = []
    for number in range(NUM_KILLS):
        is_near_the_end = newest_checkpoint(killed) + MAX_ADVANCE_STEPS > last["step"]
        longest = start_seconds if number % 4 == 0 or is_near_the_end else None
        kills.append(kill([*train, str(killed)], killed, rng.random(), longest))
        if (killed / MANIFEST_NAME).exists():
            sys.exit(f"the run was finished before kill {number + 1}: give it more tokens")
    subprocess.run([*train, str(killed)], check=True)

    equal = {
        "weights_equal": sha256_of_file(whole / "model.safetensors") == sha256_of_file(killed / "model.safetensors"),
        "metrics_equal": untimed(read_metrics(whole), TIMES) == untimed(read_metrics(killed), TIMES),
    }
    store(arguments.output, "kills", kills=kills, num_kills=len(kills), num_steps=last["step"], **equal)
    if not all(equal.values()):
        sys.exit("the runs differ")


def kill(words: list[str], output: Path, moment: float, longest_seconds: float | None) -> dict[str, Any]:
    """Start the run and kill it; says what it left.

    Args:
        words: the command.
        output: its folder.
        moment: in [0, 1): of `longest_seconds` from its start; without them, of the time between two lines of its metrics,
            after its second one, so that the machine's load does not count.
        longest_seconds: how long the start may take; once the run writes to its metrics, it is over.
    """
    started_ns, before = time.time_ns(), newest_checkpoint(output)
    process = subprocess.Popen(words, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
    if longest_seconds is None:
        times = []
        for line in (1, 2):
            while process.poll() is None and last_step(output, started_ns) < before + line * STEPS_PER_LINE:
                time.sleep(0.005)
            times.append(time.monotonic())
        longest_seconds = times[1] - times[0]
        where = "among its steps"
        time.sleep(moment * longest_seconds)
    else:
        deadline = time.monotonic() + moment * longest_seconds
        while time.monotonic() < deadline and not last_step(output, started_ns):
            time.sleep(0.005)
        where = "at its start"
    process.kill()
    process.wait()
    return {
        "where": where,
        "last_step": last_step(output, 0),
        "newest_checkpoint": newest_checkpoint(output),
        "half_written": any(output.glob("checkpoints/.*.partial")),
    }


def newest_checkpoint(output: Path) -> int:
    """Its step; 0 if there is none."""
    return max((int(path.name.removeprefix("step-")) for path in output.glob("checkpoints/step-*")), default=0)


def last_step(output: Path, since_ns: int) -> int:
    """Last step in the metrics, if they were written to since then; else 0."""
    metrics = output / "metrics.jsonl"
    if not metrics.exists() or metrics.stat().st_mtime_ns < since_ns:
        return 0
    lines = metrics.read_text().splitlines()
    return int(json.loads(lines[-1])["step"]) if lines else 0


if __name__ == "__main__":
    main()
