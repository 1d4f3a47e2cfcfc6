"""`train-sae` on the default demo's teacher: a dictionary of 4,096 latents against its targets, and the learning rate.

    python -m benchmarks.sae --demo runs/demo --work runs/sae --output benchmarks/results/sae.json

Every row has the command's defaults but for its size and, where it says so, a multiple of the default learning rate. The
demo's own size stands beside the large one, because the rate is to scale between them. Rows that are finished already are
recognised and in the table; `--only NAME` runs some rows.
"""

from __future__ import annotations

import argparse
import dataclasses
import os
import platform
from pathlib import Path
from typing import Any

import torch

from cocomix import TrainSaeConfig, train_sae
from cocomix.base import artifacts
from cocomix.base.artifacts import read_json, write_json
from cocomix.base.host import tune_process
from cocomix.base.kinds import SPARSE_AUTOENCODER
from cocomix.sae.train import LEARNING_RATE_AT_2_14
from cocomix.tools.demo.sizes import demo_size

#: Of a dictionary of 4,096 latents: FVU and the share of dead latents at most, loss recovered at least.
TARGETS = {"fvu": 0.12, "loss_recovered": 0.96, "dead_share": 0.05}


@dataclasses.dataclass(frozen=True)
class Row:
    """One dictionary of the table."""

    num_latents: int
    learning_rate_factor: float = 1.0
    """Times the default."""


ROWS = {
    "4096": Row(4096),
    "4096, half the rate": Row(4096, 0.5),
    "4096, twice the rate": Row(4096, 2.0),
    "1024": Row(1024),
    "1024, half the rate": Row(1024, 0.5),
    "1024, twice the rate": Row(1024, 2.0),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--demo", type=Path, required=True, help="folder of a finished demo")
    parser.add_argument("--work", type=Path, required=True, help="folder for the autoencoders")
    parser.add_argument("--output", type=Path, required=True, help="JSON file of the table")
    parser.add_argument("--only", nargs="*", default=list(ROWS), choices=list(ROWS), help="rows to run")
    arguments = parser.parse_args()
    tune_process()
    demo = read_json(arguments.demo / "settings.json")["settings"]
    for name in arguments.only:
        train_sae(config(arguments.demo, arguments.work, demo["size"], name))
    write_json(
        arguments.output,
        {
            "command": "python -m benchmarks.sae --demo runs/demo --work runs/sae --output benchmarks/results/sae.json",
            "demo": demo,
            "machine": {
                "cores": os.cpu_count(),
                "threads": torch.get_num_threads(),
                "python": platform.python_version(),
                "torch": torch.__version__,
            },
            "targets": TARGETS,
            "table": {name: row(arguments.work, name) for name in ROWS if is_finished(arguments.work, name)},
        },
    )


def config(demo: Path, work: Path, size: str, name: str) -> TrainSaeConfig:
    row = ROWS[name]
    rate = row.learning_rate_factor * LEARNING_RATE_AT_2_14 / (row.num_latents / 2**14) ** 0.5
    return TrainSaeConfig(
        teacher=demo / "teacher",
        data=demo / "data",
        output=folder(work, name),
        layer=demo_size(size).sae_layer,
        num_latents=row.num_latents,
        learning_rate=None if row.learning_rate_factor == 1.0 else rate,
    )


def folder(work: Path, name: str) -> Path:
    return work / name.replace(", ", "-").replace(" ", "-")


def is_finished(work: Path, name: str) -> bool:
    return (folder(work, name) / artifacts.MANIFEST_NAME).exists()


def row(work: Path, name: str) -> dict[str, Any]:
    """Settings, quality and time of a finished row, and whether it meets the targets."""
    manifest = artifacts.read(folder(work, name), SPARSE_AUTOENCODER)
    quality = manifest.facts["quality"]
    dead_share = quality["num_dead"] / manifest.settings["num_latents"]
    return {
        "settings": {key: value for key, value in manifest.settings.items() if key != "inputs"},
        "quality": quality | {"dead_share": dead_share},
        "meets_targets": quality["fvu"] <= TARGETS["fvu"]
        and quality["loss_recovered"] >= TARGETS["loss_recovered"]
        and dead_share <= TARGETS["dead_share"],
        "train_tokens": manifest.facts["train_tokens"],
        "train_seconds": manifest.facts["train_seconds"],
    }


if __name__ == "__main__":
    main()
