"""Which mixing and which attribution: students on one demo's teacher, dictionary and data, several seeds each.

    python -m benchmarks.variants --demo runs/demo --work runs/variants --output benchmarks/results/variants.json

Every run has the demo's student size, token count and schedule. All runs of one seed share initial weights and data order, so
differences to NTP are paired. Runs that are finished already are recognised; `--only NAME` adds some rows to the table.
"""

from __future__ import annotations

import argparse
import concurrent.futures
import json
import os
import platform
import statistics
import subprocess
import sys
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from cocomix import AttributionConfig, ExtractConfig, OptimizerConfig, StudentConfig, TrainConfig, extract, train
from cocomix.base.artifacts import read_json, write_json
from cocomix.base.host import tune_process
from cocomix.demo.sizes import DemoSize, demo_size
from cocomix.training.metrics import read_metrics

SEEDS = (0, 1, 2)


@dataclass(frozen=True)
class Variant:
    """One row of the table."""

    mixer: str = "concept"
    mixing: str = "interleave_residual"
    attribution: AttributionConfig = field(default_factory=AttributionConfig)


VARIANTS = {
    "ntp": Variant(mixer="none"),
    "interleave": Variant(mixing="interleave"),
    "interleave_residual": Variant(),
    "add": Variant(mixing="add"),
    "lowers_loss": Variant(attribution=AttributionConfig(sign="lowers_loss")),
    "activation_value": Variant(attribution=AttributionConfig(criterion="activation_value")),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--demo", type=Path, required=True, help="folder of a finished demo")
    parser.add_argument("--work", type=Path, required=True, help="folder for labels and runs")
    parser.add_argument("--output", type=Path, required=True, help="JSON file of the table")
    parser.add_argument("--only", nargs="*", default=list(VARIANTS), choices=list(VARIANTS), help="rows to run")
    parser.add_argument("--seeds", nargs="*", type=int, default=list(SEEDS))
    parser.add_argument("--workers", type=int, default=2, help="runs at a time, one thread each")
    parser.add_argument("--run", nargs=2, metavar=("NAME", "SEED"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    tune_process()
    if arguments.run:
        run(arguments.demo, arguments.work, arguments.run[0], int(arguments.run[1]))
        return

    jobs = [(name, seed) for seed in arguments.seeds for name in arguments.only]
    with concurrent.futures.ThreadPoolExecutor(arguments.workers) as pool:
        list(pool.map(lambda job: start(arguments, *job), jobs))
    settings = read_json(arguments.demo / "settings.json")["settings"]
    table = {name: row(arguments.work, name, arguments.seeds) for name in arguments.only}
    former = json.loads(arguments.output.read_text())["table"] if arguments.output.exists() else {}
    write_json(
        arguments.output,
        {
            "command": "python -m benchmarks.variants --demo runs/demo --work runs/variants "
            "--output benchmarks/results/variants.json",
            "demo": settings,
            "seeds": arguments.seeds,
            "machine": {"cores": os.cpu_count(), "python": platform.python_version()},
            "table": former | table,
        },
    )


def start(arguments: argparse.Namespace, name: str, seed: int) -> None:
    """One run in a process of its own, with one thread: two runs side by side use two cores best."""
    command = [
        sys.executable,
        "-m",
        "benchmarks.variants",
        "--demo",
        str(arguments.demo),
        "--work",
        str(arguments.work),
    ]
    command += ["--output", str(arguments.output), "--run", name, str(seed)]
    subprocess.run(command, check=True, env=os.environ | {"OMP_NUM_THREADS": "1"})


def run(demo: Path, work: Path, name: str, seed: int) -> None:
    """Labels (once for each attribution) and one student."""
    variant, size = VARIANTS[name], demo_size(read_json(demo / "settings.json")["settings"]["size"])
    train(train_config(demo, work, size, variant, folder(work, name, seed), seed))


def train_config(demo: Path, work: Path, size: DemoSize, variant: Variant, output: Path, seed: int) -> TrainConfig:
    num_windows = -(-size.student_tokens // size.context_length)
    student: StudentConfig = replace(size.students["ntp"].student, mixer=variant.mixer, mixing=variant.mixing)
    return TrainConfig(
        data=demo / "data",
        output=output,
        labels=labels(demo, work, variant.attribution, num_windows) if variant.mixer == "concept" else None,
        student=student,
        optimizer=OptimizerConfig(learning_rate=size.learning_rate),
        num_tokens=size.student_tokens,
        batch_size=size.batch_size,
        num_windows=num_windows,
        seed=seed,
        num_evaluations=4,
        max_validation_windows=size.curve_windows,
    )


def labels(demo: Path, work: Path, attribution: AttributionConfig, num_windows: int) -> Path:
    if attribution == AttributionConfig():
        return demo / "concepts"
    output = work / "labels" / "-".join(str(value) for value in asdict(attribution).values())
    output.parent.mkdir(parents=True, exist_ok=True)
    extract(
        ExtractConfig(
            teacher=demo / "teacher",
            sae=demo / "sae",
            data=demo / "data",
            output=output,
            attribution=attribution,
            num_windows=num_windows,
        )
    )
    return output


def folder(work: Path, name: str, seed: int) -> Path:
    return work / f"{name}-{seed}"


def row(work: Path, name: str, seeds: list[int]) -> dict[str, Any]:
    """Final validation losses of a row, and their paired differences to NTP's."""
    runs = [folder(work, name, seed) for seed in seeds]
    losses = [final_loss(run) for run in runs]
    differences = [loss - final_loss(folder(work, "ntp", seed)) for loss, seed in zip(losses, seeds, strict=True)]
    facts = [read_json(run / "manifest.json")["facts"] for run in runs]
    return {
        "validation_loss": losses,
        "mean": statistics.fmean(losses),
        "difference_to_ntp": differences,
        "mean_difference_to_ntp": statistics.fmean(differences),
        "standard_deviation_of_difference": statistics.stdev(differences) if len(differences) > 1 else None,
        "train_flops": facts[0]["train_flops"],
        "train_tokens": facts[0]["train_tokens"],
        "num_parameters": facts[0]["num_parameters"],
    }


def final_loss(run: Path) -> float:
    return float([line["validation_loss"] for line in read_metrics(run) if "validation_loss" in line][-1])


if __name__ == "__main__":
    main()
