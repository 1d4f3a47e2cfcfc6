"""The steering score of the demo's model, by each mode, and by the best one on several seeds of sampling.

    python -m benchmarks.steering --demo runs/demo --work runs/steering --output benchmarks/results/steering.json

Scores that are finished already are taken as they are.
"""

from __future__ import annotations

import argparse
import os
import platform
from pathlib import Path
from typing import Any

from cocomix.base.artifacts import read_json, write_json
from cocomix.tools.steer_eval.command import RESULT_NAME, STRENGTHS, SteerEvalConfig, steer_eval

BEST_MODE = "toward"
KEPT = ("share_rising", "share_rising_by_others", "num_concepts", "max_fluency_cost", "unsteered", "strengths")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--demo", type=Path, required=True, help="finished demo")
    parser.add_argument("--work", type=Path, required=True, help="folder for the scores")
    parser.add_argument("--output", type=Path, required=True, help="JSON file of the result")
    parser.add_argument("--seeds", nargs="*", type=int, default=[0, 1, 2], help=f"of mode {BEST_MODE}")
    parser.add_argument("--modes", nargs="*", default=list(STRENGTHS), help="on the first seed")
    arguments = parser.parse_args()

    runs = [(BEST_MODE, seed) for seed in arguments.seeds]
    runs += [(mode, arguments.seeds[0]) for mode in arguments.modes if mode != BEST_MODE]
    results: dict[str, dict[str, Any]] = {}
    for mode, seed in runs:
        results.setdefault(mode, {})[str(seed)] = score(arguments.demo, arguments.work / f"{mode}-{seed}", mode, seed)
        write_json(
            arguments.output,
            {
                "command": "python -m benchmarks.steering --demo runs/demo --work runs/steering "
                "--output benchmarks/results/steering.json",
                "machine": {"cores": os.cpu_count(), "python": platform.python_version()},
                "modes": results,
            },
        )


def score(demo: Path, output: Path, mode: Any, seed: int) -> dict[str, Any]:
    """The part of a score that is kept: headline and strengths, and of each concept whether it rises."""
    config = SteerEvalConfig(
        model=demo / "cocomix",
        teacher=demo / "teacher",
        sae=demo / "sae",
        data=demo / "data",
        output=output,
        mode=mode,
        seed=seed,
    )
    print(steer_eval(config), flush=True)
    result = read_json(output / RESULT_NAME)
    concepts = [{name: each[name] for name in ("concept", "strength", "rises")} for each in result["concepts"]]
    return {name: result[name] for name in KEPT} | {"concepts": concepts}


if __name__ == "__main__":
    main()
