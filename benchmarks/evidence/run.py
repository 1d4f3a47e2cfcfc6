"""One cell, from nothing to its file."""

from __future__ import annotations

import platform
import shutil
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
import transformers

from benchmarks.evidence.cells import Cell
from benchmarks.evidence.corpora import TASKS, Places, prepare_config
from benchmarks.evidence.inputs import TEACHERS, Inputs, windows_of
from benchmarks.evidence.tables import REGIMES
from benchmarks.evidence.variants import VARIANTS
from cocomix import AttributionConfig, EvalConfig, TrainConfig, evaluate, train
from cocomix.base.artifacts import read_json, sha256_of_file
from cocomix.base.kinds import read_metrics
from cocomix.base.numbers import parse_count
from cocomix.training.sizes import SIZES

FACTS = ("train_tokens", "train_flops", "train_flops_per_token", "teacher_flops", "train_seconds", "num_parameters")
CURVE = ("train_tokens", "train_flops", "train_seconds", "validation_loss")
#: Points of a curve.
NUM_EVALUATIONS = 5
#: Evenly spaced validation windows for each point of a curve and each probe. Losses are of the whole split.
CURVE_WINDOWS = PROBE_WINDOWS = 128
#: Items of each benchmark (of each paradigm of BLiMP).
TASK_ITEMS = {"lambada": 1000, "blimp": 100}
#: Of a result, what a rerun on the same machine does not give again.
NOT_REPEATED = ("train_seconds", "versions")


def run(cell: Cell, places: Places) -> dict[str, Any]:
    """Train and evaluate a cell, continuing what was begun; returns its result."""
    key = cell.key
    inputs = inputs_of(key, places)
    config = train_config(key, inputs)
    manifest = train(config)
    evaluation = config.output.with_name(config.output.name + "-evaluation")
    result: dict[str, Any] = {
        "command": key.command,
        "inputs": manifest.settings["inputs"],
        **{name: manifest.facts[name] for name in FACTS},
        **evaluate(EvalConfig(model=config.output, data=config.data, output=evaluation)),
        "curve": {"columns": list(CURVE), "rows": curve_of(config)},
        "weights": sha256_of_file(config.output / "model.safetensors"),
        "versions": {
            "python": platform.python_version(),
            "torch": torch.__version__,
            "transformers": transformers.__version__,
            "threads": torch.get_num_threads(),
        },
    }
    if not config.student.mixer.unsteerable:
        result["probes"] = probes_of(key, config, inputs)
    if key.teacher != "none":
        result |= teacher_facts(inputs, VARIANTS[key.variant].num_latents)
    if (
        places.task_data is not None
        and TASKS[key.corpus]
        and key.tokens in {regime.tokens for regime in REGIMES.values()}
    ):
        result["tasks"] = tasks_of(config, places)
    return result


def inputs_of(cell: Cell, places: Places) -> Inputs:
    folder = places.work / cell.corpus / f"{cell.teacher}-{cell.size}"
    return Inputs(places, cell.corpus, TEACHERS.get(cell.teacher), cell.size, folder)


def repeated(result: Mapping[str, Any]) -> dict[str, Any]:
    """What a rerun on the same machine gives again: all but times."""
    kept = {name: value for name, value in result.items() if name not in NOT_REPEATED}
    seconds = CURVE.index("train_seconds")
    return kept | {"curve": [row[:seconds] + row[seconds + 1 :] for row in result["curve"]["rows"]]}


def forget(cell: Cell, places: Places) -> None:
    """Remove what a cell's run and its evaluations left in the work folder; the data, teacher and labels stay.

    Raises:
        CocomixError: the corpus is missing, and the run could not be repeated.
    """
    key = cell.key
    prepare_config(key.corpus, SIZES[key.size], places)
    folder = inputs_of(key, places).folder
    for path in (folder / key.stem, *folder.glob(f"{key.stem}-*")):
        shutil.rmtree(path, ignore_errors=True)


def train_config(cell: Cell, inputs: Inputs) -> TrainConfig:
    """The student's run: its variant, with data, labels and teacher filled in."""
    variant, size = VARIANTS[cell.variant], SIZES[cell.size]
    config = variant.config(cell.size)
    num_windows = windows_of(cell.num_tokens, size)
    given: dict[str, Any] = {"attribution": AttributionConfig()}
    if variant.needs_labels(cell.size):
        most = max(num_windows, windows_of(parse_count(REGIMES[cell.teacher].tokens, "tokens"), size))
        mixer = config.student.mixer.changed(num_concepts=None)  # as many as the labels have
        given = {
            "attribution": config.attribution,
            "labels": inputs.labels(config.attribution, most, variant.num_latents),
            "student": replace(config.student, mixer=mixer),
        }
    if any(objective.uses_teacher(config) for objective in config.objectives):
        given["teacher"] = inputs.teacher
    return replace(
        config,
        data=inputs.data,
        output=inputs.folder / cell.stem,
        num_tokens=cell.num_tokens,
        num_windows=num_windows,
        seed=cell.seed,
        num_evaluations=NUM_EVALUATIONS,
        max_validation_windows=CURVE_WINDOWS,
        **given,
    )


def curve_of(config: TrainConfig) -> list[list[float]]:
    return [[line[name] for name in CURVE] for line in read_metrics(config.output) if "validation_loss" in line]


def teacher_facts(inputs: Inputs, num_latents: int | None) -> dict[str, Any]:
    """Loss of the teacher on the whole validation split, what training it took, and how well its dictionary fits."""
    output = inputs.folder / "teacher-evaluation"
    loss = evaluate(EvalConfig(model=inputs.teacher, data=inputs.data, output=output))["validation_loss"]
    quality = read_json(inputs.sae(num_latents) / "manifest.json")["facts"]["quality"]
    flops = read_json(inputs.teacher / "manifest.json")["facts"]["train_flops"]
    facts = {"teacher_loss": loss, "teacher_train_flops": flops}
    return facts | {"sae_fvu": quality["fvu"], "sae_loss_recovered": quality["loss_recovered"]}


def probes_of(cell: Cell, config: TrainConfig, inputs: Inputs) -> dict[str, Any]:
    """Loss changes under the causal probes; the teacher's own labels only where they are no control."""
    variant, oracle = VARIANTS[cell.variant], {}
    attribution = variant.config(cell.size).attribution
    if config.labels is not None and attribution.control == "none":
        oracle = {"teacher": inputs.teacher, "sae": inputs.sae(variant.num_latents), "attribution": attribution}
    result = evaluate(
        EvalConfig(
            model=config.output,
            data=config.data,
            output=config.output.with_name(config.output.name + "-probes"),
            probes=True,
            max_windows=PROBE_WINDOWS,
            **oracle,
        )
    )
    return dict(result["probes"])


def tasks_of(config: TrainConfig, places: Places) -> dict[str, Any]:
    """Scores on the corpus's benchmarks."""
    scores: dict[str, Any] = {}
    for name, limit in TASK_ITEMS.items():
        output = config.output.with_name(f"{config.output.name}-{name}")
        scores |= evaluate(
            EvalConfig(
                model=config.output, data=None, output=output, tasks=(name,), task_data=places.task_data, limit=limit
            )
        )["tasks"]
    return scores
