"""The default demo on several seeds: CoCoMix against NTP, each seed with its own split, tokenizer, teacher and dictionary.

    python -m benchmarks.demo_seeds --work runs/seeds --output benchmarks/results/demo_seeds.json

Demos run side by side with one thread each. A demo that is finished already is taken as it is.
"""

from __future__ import annotations

import argparse
import concurrent.futures
import os
import platform
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

from cocomix.base.artifacts import read_json, write_json

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
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True, help="folder for the demos")
    parser.add_argument("--output", type=Path, required=True, help="JSON file of the result")
    parser.add_argument("--seeds", nargs="*", type=int, default=[0, 1, 2])
    parser.add_argument("--workers", type=int, default=2, help="demos at a time, one thread each")
    arguments = parser.parse_args()

    folders = {seed: arguments.work / f"seed-{seed}" for seed in arguments.seeds}
    with concurrent.futures.ThreadPoolExecutor(arguments.workers) as pool:
        list(pool.map(run, folders, folders.values()))
    seeds = {str(seed): result_of(folder) for seed, folder in folders.items()}
    differences = [seed["cocomix"]["validation_loss"] - seed["ntp"]["validation_loss"] for seed in seeds.values()]
    write_json(
        arguments.output,
        {
            "command": "python -m benchmarks.demo_seeds --work runs/seeds --output benchmarks/results/demo_seeds.json",
            "machine": {"cores": os.cpu_count(), "python": platform.python_version()},
            "seeds": seeds,
            "cocomix_minus_ntp": {
                "validation_loss": differences,
                "mean": statistics.fmean(differences),
                "standard_deviation": statistics.stdev(differences) if len(differences) > 1 else None,
            },
        },
    )


def run(seed: int, folder: Path) -> None:
    if (folder / "manifest.json").exists():
        return
    command = [sys.executable, "-m", "cocomix.cli.main", "demo", "--output", str(folder), "--seed", str(seed)]
    subprocess.run(command, check=True, env=os.environ | {"OMP_NUM_THREADS": "1"})


def result_of(folder: Path) -> dict[str, Any]:
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
