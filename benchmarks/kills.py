"""`kill -9` in every stage of the demo: the same command then ends with the numbers of an undisturbed run.

    python -m benchmarks.kills --work runs/kills --output benchmarks/results/kills.json

One smoke demo runs undisturbed. Another is killed in every stage, at a random moment up to a second after the stage was
announced, and started again each time; then once more and left alone. Their summaries are compared, times aside.
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

    subprocess.run(command(whole, arguments.size), check=True)
    rng = random.Random(arguments.seed)
    kills: list[dict[str, Any]] = []
    for stage in range(1, num_stages(whole) + 1):
        kills.append(kill_in_stage(command(killed, arguments.size), stage, rng.uniform(0.0, 1.0)))
    subprocess.run(command(killed, arguments.size), check=True)
    equal = untimed(read_json(whole / "summary.json")) == untimed(read_json(killed / "summary.json"))
    write_json(
        arguments.output,
        {
            "command": "python -m benchmarks.kills --work runs/kills --output benchmarks/results/kills.json",
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


def num_stages(folder: Path) -> int:
    """Of a demo, counted as the demo counts them."""
    return 6 + 2 * len(read_json(folder / "summary.json")["students"])


def kill_in_stage(words: list[str], stage: int, delay_seconds: float) -> dict[str, Any]:
    """Start the demo, wait until it announces a stage and a little longer, and kill it."""
    process = subprocess.Popen(words, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True)
    assert process.stderr is not None
    title = ""
    for line in process.stderr:
        if line.startswith(f"[{stage}/"):
            title = line.strip()
            break
    time.sleep(delay_seconds)
    was_running = process.poll() is None
    process.send_signal(signal.SIGKILL)
    process.stderr.close()
    process.wait()
    return {"stage": title, "delay_seconds": round(delay_seconds, 3), "was_running": was_running}


def untimed(value: Any) -> Any:
    """A summary without its times."""
    if isinstance(value, dict):
        return {key: untimed(item) for key, item in value.items() if key not in TIMES}
    if isinstance(value, list):
        return [untimed(item) for item in value]
    return value


if __name__ == "__main__":
    main()
