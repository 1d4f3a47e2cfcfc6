"""`kill -9` in every stage of the demo: the same command then ends with the numbers of an undisturbed run.

    python -m benchmarks.demo_kills

One smoke demo runs undisturbed and times its stages. Another is killed in every stage, at a random moment of its first half,
and started again each time; then once more and left alone. Their summaries are compared, times aside.
"""

from __future__ import annotations

import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from benchmarks.common import options, store, untimed
from cocomix.base.artifacts import read_json

SIZE = "smoke"
TIMES = frozenset({"train_seconds", "seconds", "seconds_to_match_ntp"})


def main() -> None:
    arguments = options("demo_kills", __doc__, "work").parse_args()
    shutil.rmtree(arguments.work, ignore_errors=True)
    whole, killed = (command(arguments.work / name) for name in ("undisturbed", "killed"))
    rng = random.Random(0)
    kills = [kill_in_stage(killed, stage, rng.uniform(0.0, 0.5) * seconds) for stage, seconds in timed(whole).items()]
    subprocess.run(killed, check=True)
    summaries = (read_json(arguments.work / name / "summary.json") for name in ("undisturbed", "killed"))
    one, other = (untimed(summary, TIMES) for summary in summaries)
    num_kills = sum(kill["was_running"] for kill in kills)
    store(arguments.output, "demo_kills", size=SIZE, kills=kills, num_kills=num_kills, summaries_equal=one == other)
    if one != other:
        sys.exit("the summaries differ")


def command(output: Path) -> list[str]:
    return [sys.executable, "-m", "cocomix.cli.main", "run", f"demo-{SIZE}", "--output", str(output)]


def timed(words: list[str]) -> dict[str, float]:
    """Run a demo; seconds of each stage, by the line that announces it."""
    process = subprocess.Popen(words, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True)
    assert process.stderr is not None
    started = {line.strip(): time.monotonic() for line in process.stderr if line.startswith("[")}
    if process.wait():
        sys.exit("the undisturbed demo failed")
    ends = [*list(started.values())[1:], time.monotonic()]
    return {stage: end - start for (stage, start), end in zip(started.items(), ends, strict=True)}


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
    killed_in = announced[-1] if announced else stage
    delay = round(delay_seconds, 3)
    return {"stage": stage, "killed_in": killed_in, "delay_seconds": delay, "was_running": was_running}


if __name__ == "__main__":
    main()
