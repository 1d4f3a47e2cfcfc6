"""Which mixing and which attribution: students on one demo's teacher, dictionary and data, several seeds each.

    python -m benchmarks.variants --demo runs/demo --work runs/variants --output benchmarks/results/variants.json

Every run has the demo's student size, token count and schedule. All runs of one seed share initial weights and data order, so
differences to NTP are paired. Runs that are finished already are recognised and in the table; `--only NAME` runs some rows.
"""

from __future__ import annotations

import argparse
import concurrent.futures
import os
import platform
import statistics
import subprocess
import sys
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

from cocomix import AttributionConfig, ExtractConfig, OptimizerConfig, StudentConfig, TrainConfig, extract, train
from cocomix.base.artifacts import read_json, write_json
from cocomix.base.host import tune_process
from cocomix.labels.config import DERIVED_CONTROLS
from cocomix.tools.demo.sizes import DemoSize, demo_size
from cocomix.training.metrics import read_metrics

SEEDS = (0, 1, 2)


#: As the paper's released code chooses them.
PAPER_LABELS = AttributionConfig(criterion="attribution", point="original", loss="all_future", sign="raises_loss")


@dataclass(frozen=True)
class Variant:
    """One row of the table."""

    mixer: Literal["concept", "none"] = "concept"
    mixing: Literal["interleave", "interleave_residual", "add", "none"] = "interleave"
    attribution: AttributionConfig = PAPER_LABELS


VARIANTS = {
    "ntp": Variant(mixer="none"),
    "interleave": Variant(),
    "interleave, lowers_loss": Variant(attribution=replace(PAPER_LABELS, sign="lowers_loss")),
    "interleave, magnitude": Variant(attribution=replace(PAPER_LABELS, sign="magnitude")),
    "interleave, activation_value": Variant(attribution=AttributionConfig(criterion="activation_value")),
    "interleave, random": Variant(attribution=replace(PAPER_LABELS, control="random")),
    "interleave, shuffled": Variant(attribution=replace(PAPER_LABELS, control="shuffled")),
    "interleave_residual": Variant(mixing="interleave_residual"),
    "add": Variant(mixing="add"),
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

    # Before any run: two processes that need the same labels at a time would be in each other's way.
    for name in arguments.only:
        make_labels(arguments.demo, arguments.work, VARIANTS[name])
    jobs = [(name, seed) for seed in arguments.seeds for name in arguments.only]
    with concurrent.futures.ThreadPoolExecutor(arguments.workers) as pool:
        list(pool.map(lambda job: start(arguments, *job), jobs))
    settings = read_json(arguments.demo / "settings.json")["settings"]
    table = {name: row(arguments.work, name) for name in VARIANTS if finished_seeds(arguments.work, name)}
    write_json(
        arguments.output,
        {
            "command": "python -m benchmarks.variants --demo runs/demo --work runs/variants "
            "--output benchmarks/results/variants.json",
            "demo": settings,
            "machine": {"cores": os.cpu_count(), "python": platform.python_version()},
            "table": table,
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
    """One student."""
    train(train_config(demo, work, size_of(demo), VARIANTS[name], folder(work, name, seed), seed))


def size_of(demo: Path) -> DemoSize:
    return demo_size(read_json(demo / "settings.json")["settings"]["size"])


def num_windows_of(size: DemoSize) -> int:
    """Training windows of a run, all labelled."""
    return -(-size.student_tokens // size.context_length)


def train_config(demo: Path, work: Path, size: DemoSize, variant: Variant, output: Path, seed: int) -> TrainConfig:
    student: StudentConfig = size.students["ntp"].student
    if variant.mixer == "concept":
        student = replace(student, mixer="concept", mixing=variant.mixing)
    return TrainConfig(
        data=demo / "data",
        output=output,
        labels=labels_folder(work, variant.attribution) if variant.mixer == "concept" else None,
        student=student,
        optimizer=OptimizerConfig(learning_rate=size.learning_rate),
        num_tokens=size.student_tokens,
        batch_size=size.batch_size,
        num_windows=num_windows_of(size),
        seed=seed,
        num_evaluations=4,
        max_validation_windows=size.curve_windows,
    )


def make_labels(demo: Path, work: Path, variant: Variant) -> None:
    """The concept dataset of a variant, and the one that a control is made from; recognised where it is there."""
    if variant.mixer != "concept":
        return
    sources: dict[str, Path] = {"teacher": demo / "teacher", "sae": demo / "sae"}
    if variant.attribution.control in DERIVED_CONTROLS:
        true = replace(variant, attribution=replace(variant.attribution, control="none"))
        make_labels(demo, work, true)
        sources = {"labels": labels_folder(work, true.attribution)}
    output = labels_folder(work, variant.attribution)
    output.parent.mkdir(parents=True, exist_ok=True)
    num_windows = num_windows_of(size_of(demo))
    extract(
        ExtractConfig(
            data=demo / "data", output=output, attribution=variant.attribution, num_windows=num_windows, **sources
        )
    )


def labels_folder(work: Path, attribution: AttributionConfig) -> Path:
    return work / "labels" / "-".join(str(value) for value in asdict(attribution).values())


def folder(work: Path, name: str, seed: int) -> Path:
    return work / f"{name.replace(', ', '-')}-{seed}"


def finished_seeds(work: Path, name: str) -> list[int]:
    return [seed for seed in SEEDS if (folder(work, name, seed) / "manifest.json").exists()]


def row(work: Path, name: str) -> dict[str, Any]:
    """Final validation losses of a row's finished runs, and their paired differences to NTP's."""
    seeds = finished_seeds(work, name)
    runs = [folder(work, name, seed) for seed in seeds]
    losses = [final_loss(run) for run in runs]
    differences = [loss - final_loss(folder(work, "ntp", seed)) for loss, seed in zip(losses, seeds, strict=True)]
    facts = read_json(runs[0] / "manifest.json")["facts"]
    return {
        "seeds": seeds,
        "validation_loss": losses,
        "mean": statistics.fmean(losses),
        "difference_to_ntp": differences,
        "mean_difference_to_ntp": statistics.fmean(differences),
        "standard_deviation_of_difference": statistics.stdev(differences) if len(differences) > 1 else None,
        "train_flops": facts["train_flops"],
        "train_tokens": facts["train_tokens"],
        "num_parameters": facts["num_parameters"],
    }


def final_loss(run: Path) -> float:
    return float([line["validation_loss"] for line in read_metrics(run) if "validation_loss" in line][-1])


if __name__ == "__main__":
    main()
