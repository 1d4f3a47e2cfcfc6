"""One cell, from nothing to its file."""

from __future__ import annotations

import platform
import shutil
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import transformers

from benchmarks.evidence.cells import Cell
from benchmarks.evidence.corpora import Places, prepare_config
from benchmarks.evidence.inputs import Inputs, alone, parallel_of
from cocomix import AttributionConfig, EvalConfig, TrainConfig, evaluate, train
from cocomix.base.artifacts import read_json, sha256_of_file, write_json
from cocomix.base.kinds import read_metrics
from cocomix.base.progress import say

FACTS = ("train_tokens", "train_flops", "train_flops_per_token", "teacher_flops", "train_seconds", "num_parameters")
CURVE = ("train_tokens", "validation_loss")
WEIGHTS_NAME = "model.safetensors"
#: Points of a curve, and evenly spaced validation windows for each of them. Final losses are of the whole split.
NUM_EVALUATIONS, CURVE_WINDOWS = 20, 64
#: Of a result, what a rerun on the same machine does not give again.
NOT_REPEATED = ("train_seconds", "versions")


def run_cell(cell: Cell, places: Places, *, again: bool = False) -> int:
    """Run a cell and write its file, or, if it has one and `again` is set, compare; returns 1 if they differ."""
    if places.device == "cpu":
        torch.set_num_threads(1)  # sums of several differ in their last bits
    stored = cell.result()
    if stored is not None and not again:
        say(f"{cell.name} has its result already; --again runs it again and compares")
        return 0
    if again:
        forget(cell, places)
    result = run(cell, places)
    if stored is None:
        cell.file.parent.mkdir(parents=True, exist_ok=True)
        write_json(cell.file, result)
        say(f"{cell.name}: {result['validation_loss']:.4f}")
        return 0
    new, old = ({name: value for name, value in each.items() if name not in NOT_REPEATED} for each in (result, stored))
    different = sorted(name for name in new.keys() | old.keys() if new.get(name) != old.get(name))
    say(f"{cell.name}: " + (f"differs in {', '.join(different)}" if different else "equal to its stored result"))
    return 1 if different else 0


def run(cell: Cell, places: Places) -> dict[str, Any]:
    """Train and evaluate a cell, continuing what was begun; returns its result."""
    inputs = inputs_of(cell, places)
    config = train_config(cell, inputs)
    manifest = train(config)
    _, evaluation = folders_of(cell, inputs)
    result: dict[str, Any] = {
        "command": cell.command,
        "inputs": manifest.settings["inputs"],
        **{name: manifest.facts[name] for name in FACTS},
        **evaluate(EvalConfig(model=config.output, data=config.data, output=evaluation)),
        "curve": {"columns": list(CURVE), "rows": curve_of(config)},
        "weights": sha256_of_file(config.output / WEIGHTS_NAME),
        "device": places.device,
        "versions": {
            "python": platform.python_version(),
            "torch": torch.__version__,
            "transformers": transformers.__version__,
            "threads": torch.get_num_threads(),
        },
    }
    if cell.teacher != "none":
        result |= teacher_facts(cell, inputs)
    return result


def inputs_of(cell: Cell, places: Places) -> Inputs:
    """What a cell learns from."""
    return Inputs(places, cell.regime, cell.corpus, cell.teacher, cell.num_latents)


def folders_of(cell: Cell, inputs: Inputs) -> tuple[Path, Path]:
    """Of its run, and of its evaluation."""
    return inputs.folder / cell.stem, inputs.folder / f"{cell.stem}-evaluation"


def forget(cell: Cell, places: Places) -> None:
    """Remove what a cell's run and its evaluation left in the work folder; the data, teacher and labels stay.

    Raises:
        CocomixError: the corpus is missing, and the run could not be repeated.
    """
    prepare_config(cell.corpus, cell.regime, places)
    for folder in folders_of(cell, inputs_of(cell, places)):
        shutil.rmtree(folder, ignore_errors=True)


def train_config(cell: Cell, inputs: Inputs) -> TrainConfig:
    """The student's run, with data, labels and teacher filled in."""
    config = cell.config
    given: dict[str, Any] = {"attribution": AttributionConfig()}
    if cell.has_labels:
        mixer = config.student.mixer.changed(num_concepts=None)  # as many as the labels have
        given = {
            "attribution": config.attribution,
            "labels": inputs.labels(config.attribution),
            "student": replace(config.student, mixer=mixer),
        }
    if any(objective.uses_teacher(config) for objective in config.objectives):
        given["teacher"] = inputs.teacher
    output, _ = folders_of(cell, inputs)
    return replace(
        config,
        data=inputs.data,
        output=output,
        num_tokens=cell.num_tokens,
        num_windows=inputs.num_windows(cell.num_tokens),
        num_evaluations=NUM_EVALUATIONS,
        max_validation_windows=CURVE_WINDOWS,
        parallel=parallel_of(inputs.places.device, cell.regime),
        **given,
    )


def curve_of(config: TrainConfig) -> list[list[float]]:
    return [[line[name] for name in CURVE] for line in read_metrics(config.output) if "validation_loss" in line]


def teacher_facts(cell: Cell, inputs: Inputs) -> Mapping[str, Any]:
    """Loss of the teacher on the whole validation split, what making it took, and how well its dictionary fits."""
    teacher, output = inputs.teacher, inputs.folder / "teacher-evaluation"
    with alone(output):
        loss = evaluate(EvalConfig(model=teacher, data=inputs.data, output=output))["validation_loss"]
    facts = {"teacher_loss": loss, "teacher_train_flops": _facts(teacher)["train_flops"]}
    if not cell.has_labels or cell.config.attribution.control == "random":  # which is not trained
        return facts
    return facts | {"dictionary_flops": inputs.dictionary_flops, "dictionary_fvu": _facts(inputs.sae)["quality"]["fvu"]}


def _facts(folder: Any) -> Mapping[str, Any]:
    return dict(read_json(folder / "manifest.json")["facts"])
