"""`train-sae` on the default demo's teacher: a dictionary of 4,096 latents against its targets, and the learning rate.

    python -m benchmarks.sae

Every row has the command's defaults but for its size and, where it says so, a multiple of the default learning rate. The
demo's own size is there because the rate is to scale between the two. Rows that are finished already are recognised.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from benchmarks.common import options, store
from cocomix import TrainSaeConfig, train_sae
from cocomix.base import artifacts
from cocomix.base.host import tune_process
from cocomix.base.kinds import SPARSE_AUTOENCODER
from cocomix.sae.train import LEARNING_RATE_AT_2_14

#: Of a dictionary of 4,096 latents: FVU and the share of dead latents at most, loss recovered at least.
TARGETS = {"fvu": 0.12, "loss_recovered": 0.96, "dead_share": 0.05}
#: Latents, and the learning rate as a multiple of the default, by the name of a row.
ROWS = {
    f"{num_latents}{name}": (num_latents, factor)
    for num_latents in (4096, 1024)
    for name, factor in (("", 1.0), (", half the rate", 0.5), (", twice the rate", 2.0))
}


def main() -> None:
    arguments = options("sae", __doc__, "demo", "work").parse_args()
    tune_process()
    layer = artifacts.read_header(arguments.demo / "sae")["settings"]["layer"]
    table = {name: row(arguments.demo, arguments.work, layer, name) for name in ROWS}
    store(arguments.output, "sae", targets=TARGETS, table=table)


def row(demo: Path, work: Path, layer: int, name: str) -> dict[str, Any]:
    """Settings, quality and time of a dictionary, and whether it meets the targets."""
    (num_latents, factor), output = ROWS[name], work / name.replace(", ", "-").replace(" ", "-")
    rate = factor * LEARNING_RATE_AT_2_14 / (num_latents / 2**14) ** 0.5
    train_sae(
        TrainSaeConfig(
            teacher=demo / "teacher",
            data=demo / "data",
            output=output,
            layer=layer,
            num_latents=num_latents,
            learning_rate=None if factor == 1.0 else rate,
        )
    )
    manifest = artifacts.read(output, SPARSE_AUTOENCODER)
    quality = manifest.facts["quality"]
    dead_share = quality["num_dead"] / num_latents
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
