"""`kill -9` in every stage of the demo: the same command then ends with the numbers of an undisturbed run.

    python -m benchmarks.demo_kills --work runs/demo-kills --output benchmarks/results/demo_kills.json

One smoke demo runs undisturbed and times its stages. Another is killed in every stage, at a random moment of its first half,
and started again each time; then once more and left alone. Their summaries are compared, times aside.
"""

from __future__ import annotations

import argparse
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from cocomix.base.artifacts import read_json, write_json

TIMES = frozenset({"train_seconds", "seconds", "seconds_to_match_ntp"})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True, help="folder for the two demos, emptied first")
    parser.add_argument("--output", type=Path, required=True, help="JSON file of the result")
    parser.add_argument("--size", default="smoke")
    parser.add_argument("--seed", type=int, default=0, help="of the moments of the kills")
    arguments = parser.parse_args()
    shutil.rmtree(arguments.work, ignore_errors=True)
    whole, killed = arguments.work / "undisturbed", arguments.work / "killed"

    stages = run_and_time(command(whole, arguments.size))
    rng = random.Random(arguments.seed)
    kills = [
        kill_in_stage(command(killed, arguments.size), stage, rng.uniform(0.0, 0.5) * seconds)
        for stage, seconds in stages.items()
    ]
    subprocess.run(command(killed, arguments.size), check=True)
    equal = untimed(read_json(whole / "summary.json")) == untimed(read_json(killed / "summary.json"))
    write_json(
        arguments.output,
        {
            "command": "python -m benchmarks.demo_kills --work runs/demo-kills --output benchmarks/results/demo_kills.json",
            "size": arguments.size,
            "kills": kills,
            "num_kills": sum(kill["was_running"] for kill in kills),
            "summaries_equal": equal,
        },
    )
    if not equal:
        sys.exit("the summaries differ")


def command(output: Path, size: str) -> list[str]:
    return [sys.executable, "-m", "cocomix.cli.main", "demo", "--output", str(output), "--size", size]


def run_and_time(words: list[str]) -> dict[str, float]:
    """Run a demo to its end; returns the seconds of each stage, by its announcement."""
    started: dict[str, float] = {}
    with subprocess.Popen(words, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True) as process:
        assert process.stderr is not None
        for line in process.stderr:
            if line.startswith("["):
                started[line.strip()] = time.monotonic()
        ended = [*list(started.values())[1:], time.monotonic()]
    if process.returncode:
        sys.exit("the undisturbed demo failed")
    return {stage: end - start for (stage, start), end in zip(started.items(), ended, strict=True)}


def kill_in_stage(words: list[str], stage: str, delay_seconds: float) -> dict[str, Any]:
    """Start the demo, wait until it announces a stage and a little longer, and kill it; says in which stage it was."""
    process = subprocess.Popen(words, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True)
    assert process.stderr is not None
    for line in process.stderr:
        if line.strip() == stage:
            break
    time.sleep(delay_seconds)
    was_running = process.poll() is None
    process.send_signal(signal.SIGKILL)
    announced = [line.strip() for line in process.stderr if line.startswith("[")]
    process.wait()
    return {
        "stage": stage,
        "killed_in": announced[-1] if announced else stage,
        "delay_seconds": round(delay_seconds, 3),
        "was_running": was_running,
    }


def untimed(value: Any) -> Any:
    """A summary without its times."""
    if isinstance(value, dict):
        return {key: untimed(item) for key, item in value.items() if key not in TIMES}
    if isinstance(value, list):
        return [untimed(item) for item in value]
    return value


if __name__ == "__main__":
    main()
