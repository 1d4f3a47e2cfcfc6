"""The default demo on three seeds: CoCoMix against NTP, each seed with its own split, tokenizer, teacher and dictionary.

    python -m benchmarks.demo_seeds

A demo that is finished already is taken as it is.
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

from benchmarks.common import options, store
from cocomix.base.artifacts import read_json

SEEDS = (0, 1, 2)
FACTS = (
    "validation_loss",
    "perplexity",
    "train_tokens",
    "train_flops",
    "teacher_flops",
    "train_seconds",
    "num_parameters",
)
SAE_FACTS = ("fvu", "l0", "num_dead", "num_latents", "loss_recovered", "num_tokens")


def main() -> None:
    arguments = options("demo_seeds", __doc__, "work").parse_args()
    seeds = {str(seed): result_of(seed, arguments.work / f"seed-{seed}") for seed in SEEDS}
    differences = [seed["cocomix"]["validation_loss"] - seed["ntp"]["validation_loss"] for seed in seeds.values()]
    summary = {
        "validation_loss": differences,
        "mean": statistics.fmean(differences),
        "standard_deviation": statistics.stdev(differences),
    }
    store(arguments.output, "demo_seeds", seeds=seeds, cocomix_minus_ntp=summary)


def result_of(seed: int, folder: Path) -> dict[str, Any]:
    if not (folder / "summary.json").exists():
        command = [
            sys.executable,
            "-m",
            "cocomix.cli.main",
            "run",
            "demo",
            "--output",
            str(folder),
            "--seed",
            str(seed),
        ]
        subprocess.run(command, check=True, env=os.environ | {"OMP_NUM_THREADS": "1"})
    summary = read_json(folder / "summary.json")
    return {
        **{name: {fact: summary[name][fact] for fact in FACTS} for name in ("ntp", "cocomix")},
        "teacher": {"validation_loss": summary["teacher"]["validation_loss"]},
        "sae": {fact: summary["sae"][fact] for fact in SAE_FACTS},
        "probes": summary["probes"],
        **{f"{unit}_to_match_ntp": summary[f"{unit}_to_match_ntp"] for unit in ("tokens", "flops", "seconds")},
    }


if __name__ == "__main__":
    main()
