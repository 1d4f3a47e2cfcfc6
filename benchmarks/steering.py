"""The steering score of the demo's model, by the paper's mode, and by the best one on three seeds of sampling.

    python -m benchmarks.steering

Scores that are finished already are taken as they are.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from benchmarks.common import options, store
from cocomix.base.artifacts import read_json
from cocomix.tools.steer_eval.command import RESULT_NAME, steer_eval
from cocomix.tools.steer_eval.config import SteerEvalConfig

#: Seeds of sampling, by mode.
MODES = {"set": (0,), "toward": (0, 1, 2)}
KEPT = ("share_rising", "share_rising_by_others", "num_concepts", "max_fluency_cost", "unsteered", "strengths")


def main() -> None:
    arguments = options("steering", __doc__, "demo", "work").parse_args()
    modes = {
        mode: {str(seed): score(arguments.demo, arguments.work / f"{mode}-{seed}", mode, seed) for seed in seeds}
        for mode, seeds in MODES.items()
    }
    store(arguments.output, "steering", modes=modes)


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
