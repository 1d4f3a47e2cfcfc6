"""Which mixing and which attribution: students on one demo's teacher, dictionary and data, three seeds each.

    python -m benchmarks.variants

Every run has the demo's student size, token count and schedule. Runs of a seed share initial weights and data order, so
differences to NTP are paired. Runs that are finished already are recognised.
"""

from __future__ import annotations

import statistics
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch

from benchmarks.common import options, store
from cocomix import AttributionConfig, ExtractConfig, TrainConfig, extract, train
from cocomix.base.artifacts import read_json
from cocomix.base.host import tune_process
from cocomix.base.kinds import read_metrics
from cocomix.cli.options import parse
from cocomix.labels.config import DERIVED_CONTROLS
from cocomix.mixers.config import ConceptConfig
from cocomix.objectives.config import ConceptLossConfig

SEEDS = (0, 1, 2)
#: As the paper's released code chooses them.
PAPER = AttributionConfig(criterion="attribution", point="original", loss="all_future", sign="raises_loss")
PAPER_LOSS = ConceptLossConfig(weight=0.1)
#: Mixing and labels, by the name of a row; None: no concepts.
VARIANTS: dict[str, tuple[str, AttributionConfig] | None] = {
    "ntp": None,
    "interleave": ("interleave", PAPER),
    "interleave, lowers_loss": ("interleave", replace(PAPER, sign="lowers_loss")),
    "interleave, magnitude": ("interleave", replace(PAPER, sign="magnitude")),
    "interleave, activation_value": ("interleave", AttributionConfig(criterion="activation_value")),
    "interleave, random": ("interleave", replace(PAPER, control="random")),
    "interleave, shuffled": ("interleave", replace(PAPER, control="shuffled")),
    "interleave_residual": ("interleave_residual", PAPER),
    "add": ("add", PAPER),
}


def main() -> None:
    parser = options("variants", __doc__, "demo", "work")
    parser.add_argument("--only", nargs="*", default=list(VARIANTS), choices=list(VARIANTS), help="rows to run")
    arguments = parser.parse_args()
    tune_process()
    torch.set_num_threads(1)
    own = parse(TrainConfig, "", "", ["--config", str(arguments.demo / "ntp")])
    runs = {name: [arguments.work / f"{name.replace(', ', '-')}-{seed}" for seed in SEEDS] for name in VARIANTS}
    for name in arguments.only:
        for seed, output in zip(SEEDS, runs[name], strict=True):
            train(train_config(arguments.demo, arguments.work, own, name, output, seed))
    ntp = [final_loss(run) for run in runs["ntp"]]
    finished = {name: some for name, some in runs.items() if all((run / "manifest.json").exists() for run in some)}
    store(arguments.output, "variants", table={name: row(some, ntp) for name, some in finished.items()})


def train_config(demo: Path, work: Path, own: TrainConfig, name: str, output: Path, seed: int) -> TrainConfig:
    student, labels, variant = own.student, None, VARIANTS[name]
    if variant is not None:
        mixing, attribution = variant
        student = replace(student, mixer=ConceptConfig(mixing=mixing))
        labels = labels_of(demo, work, own.num_windows, attribution)
    return replace(
        own, output=output, labels=labels, student=student, seed=seed, num_evaluations=4, concept_loss=PAPER_LOSS
    )


def labels_of(demo: Path, work: Path, num_windows: int | None, attribution: AttributionConfig) -> Path:
    """A concept dataset, made if it is not there; a control's is made from the true one."""
    output = work / "labels" / "-".join(map(str, asdict(attribution).values()))
    sources: dict[str, Path] = {"teacher": demo / "teacher", "sae": demo / "sae"}
    if attribution.control in DERIVED_CONTROLS:
        sources = {"labels": labels_of(demo, work, num_windows, replace(attribution, control="none"))}
    output.parent.mkdir(parents=True, exist_ok=True)
    config = {"attribution": attribution, "num_windows": num_windows, **sources}
    extract(ExtractConfig(data=demo / "data", output=output, **config))
    return output


def row(runs: list[Path], ntp: list[float]) -> dict[str, Any]:
    """Final validation losses, and their paired differences to NTP's."""
    losses = [final_loss(run) for run in runs]
    differences = [loss - other for loss, other in zip(losses, ntp, strict=True)]
    facts = read_json(runs[0] / "manifest.json")["facts"]
    return {
        "seeds": list(SEEDS),
        "validation_loss": losses,
        "mean": statistics.fmean(losses),
        "difference_to_ntp": differences,
        "mean_difference_to_ntp": statistics.fmean(differences),
        "standard_deviation_of_difference": statistics.stdev(differences),
        **{name: facts[name] for name in ("train_flops", "train_tokens", "num_parameters")},
    }


def final_loss(run: Path) -> float:
    return float([line["validation_loss"] for line in read_metrics(run) if "validation_loss" in line][-1])


if __name__ == "__main__":
    main()
