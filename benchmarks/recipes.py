"""One run of every recipe at `small` size: the paper's main table and component ablation on two cores.

    python -m benchmarks.recipes --work runs/recipes --output benchmarks/results/recipes.json

Text is the standard library's, enough of it that no student sees a window twice. The teacher is a plain decoder of the
students' blocks that was trained on twice their tokens; its dictionary reads the middle of it. All runs of a seed share data
order, schedule and, where they have the same width, the backbone's initial weights. Every stage is recognised when it is
finished and continued when it is not, and the table is written after every run: rows that are missing are shown as such, and
stored ones stay, so that they may come from several machines. `--only NAME` runs some rows, `--tokens N` makes all of them
shorter, for a try.
"""

from __future__ import annotations

import argparse
import os
import platform
import shlex
from functools import cache, cached_property
from pathlib import Path
from typing import Any

import torch
from cocomix.training.numbers import parse_count

import cocomix
from cocomix import (
    AttributionConfig,
    EvalConfig,
    ExtractConfig,
    PrepareConfig,
    TrainSaeConfig,
    evaluate,
    extract,
    prepare,
    train,
    train_sae,
)
from cocomix.base.artifacts import read_json, write_json
from cocomix.base.host import tune_process
from cocomix.base.progress import say
from cocomix.training.metrics import read_metrics
from cocomix.training.recipes import VARIANTS, Recipe, find_recipe
from cocomix.training.sizes import SIZES

SIZE = SIZES["small"]
MAX_BYTES = 24_000_000
SAE_TOKENS = 1_000_000
NUM_ACTIVE_LATENTS = 16
FACTS = ("train_tokens", "train_flops", "teacher_flops", "train_seconds", "num_parameters")
CURVE = ("train_tokens", "train_flops", "train_seconds", "validation_loss")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, default=Path("runs/recipes"), help="folder for data, teacher and runs")
    parser.add_argument(
        "--output", type=Path, default=Path("benchmarks/results/recipes.json"), help="JSON of the table"
    )
    parser.add_argument("--only", nargs="*", default=list(VARIANTS), choices=list(VARIANTS), metavar="NAME")
    parser.add_argument("--seeds", nargs="*", type=int, default=[0])
    parser.add_argument("--threads", type=int, default=None, help="of torch; by default as many as it takes")
    parser.add_argument("--tokens", default=str(SIZE.num_tokens), help="of each run, such as 2M; the teacher has twice")
    arguments = parser.parse_args()
    tune_process()
    if arguments.threads is not None:
        torch.set_num_threads(arguments.threads)
    inputs = Inputs(arguments.work, parse_count(arguments.tokens, "--tokens"))
    if not arguments.only:
        write_result(arguments.output, inputs, command_of(arguments))
    for seed in arguments.seeds:
        for name in arguments.only:
            say(f"recipe {name}, seed {seed}")
            run(inputs, find_recipe(f"gpt2-{SIZE.name}-{name}"), seed)
            write_result(arguments.output, inputs, command_of(arguments))


def command_of(arguments: argparse.Namespace) -> str:
    """As it makes the whole table."""
    words = [
        "python",
        "-m",
        "benchmarks.recipes",
        "--work",
        "runs/recipes",
        "--output",
        "benchmarks/results/recipes.json",
    ]
    if parse_count(arguments.tokens, "--tokens") != SIZE.num_tokens:
        words += ["--tokens", arguments.tokens]
    return shlex.join(words)


class Inputs:
    """Data, teacher, dictionary and labels, each made when it is first asked for.

    Args:
        work: folder for all of them, and for the runs.
        num_tokens: that each student is trained on.
    """

    def __init__(self, work: Path, num_tokens: int) -> None:
        self.work, self.num_tokens = work, num_tokens
        self.num_windows = -(-num_tokens // SIZE.context_length)

    @cached_property
    def data(self) -> Path:
        output = self.work / "data"
        prepare(
            PrepareConfig(
                output=output, vocab_size=SIZE.vocab_size, context_length=SIZE.context_length, max_bytes=MAX_BYTES
            )
        )
        return output

    @cached_property
    def teacher(self) -> Path:
        output = self.work / "teacher"
        train(
            cocomix.recipe(
                f"gpt2-{SIZE.name}-ntp",
                data=self.data,
                output=output,
                student=SIZE.teacher,
                num_tokens=2 * self.num_tokens,
            )
        )
        return output

    @cached_property
    def sae(self) -> Path:
        output = self.work / "sae"
        train_sae(
            TrainSaeConfig(
                teacher=self.teacher,
                data=self.data,
                output=output,
                layer=SIZE.teacher_layer,
                num_latents=SIZE.num_concepts,
                k=NUM_ACTIVE_LATENTS,
                num_tokens=min(SAE_TOKENS, self.num_tokens),
                num_counted_tokens=0,
            )
        )
        return output

    @cache  # noqa: B019 (there is one object of this class)
    def labels(self, attribution: AttributionConfig) -> Path:
        output = self.work / f"labels-{attribution.criterion}"
        extract(
            ExtractConfig(
                teacher=self.teacher,
                sae=self.sae,
                data=self.data,
                output=output,
                attribution=attribution,
                num_windows=self.num_windows,
            )
        )
        return output


def run(inputs: Inputs, recipe: Recipe, seed: int) -> None:
    """One student and its evaluation on the whole validation split; recognised where they are finished."""
    draft, output = recipe.draft(), folder(inputs.work, recipe, seed)
    given: dict[str, Any] = {}
    if draft.student.mixer == "concept" and draft.concept_loss_weight:
        given["labels"] = inputs.labels(draft.attribution)
    if draft.distillation.weight or draft.hidden_regression.weight:
        given["teacher"] = inputs.teacher
    config = cocomix.recipe(
        recipe.name,
        data=inputs.data,
        output=output,
        num_tokens=inputs.num_tokens,
        num_windows=inputs.num_windows,
        seed=seed,
        **given,
    )
    train(config)
    evaluate(EvalConfig(model=output, data=config.data, output=evaluation(output)))


def folder(work: Path, recipe: Recipe, seed: int) -> Path:
    return work / f"{recipe.name}-{seed}"


def evaluation(run: Path) -> Path:
    return run.with_name(f"{run.name}-evaluation")


def write_result(output: Path, inputs: Inputs, command: str) -> None:
    """The table of all runs that are finished in the work folder, and of those that the stored one has beside them."""
    stored = read_json(output) if output.exists() else {}
    if stored.get("num_tokens") != inputs.num_tokens:
        stored = {}
    runs: dict[str, dict[str, Any]] = {name: dict(seeds) for name, seeds in stored.get("runs", {}).items()}
    for name in VARIANTS:
        recipe = find_recipe(f"gpt2-{SIZE.name}-{name}")
        for path in sorted(inputs.work.glob(f"{recipe.name}-[0-9]*-evaluation/evaluation.json")):
            seed = path.parent.name.removeprefix(f"{recipe.name}-").removesuffix("-evaluation")
            runs.setdefault(name, {})[seed] = row(folder(inputs.work, recipe, int(seed)), read_json(path))
    output.parent.mkdir(parents=True, exist_ok=True)
    write_json(
        output,
        {
            "command": command,
            "machine": {
                "cores": os.cpu_count(),
                "threads": torch.get_num_threads(),
                "python": platform.python_version(),
                "torch": torch.__version__,
            },
            "num_tokens": inputs.num_tokens,
            "size": SIZE.name,
            "teacher": teacher_row(inputs.work) or stored.get("teacher"),
            "runs": runs,
        },
    )


def row(run: Path, evaluated: dict[str, Any]) -> dict[str, Any]:
    facts = read_json(run / "manifest.json")["facts"]
    curve = [[line[name] for name in CURVE] for line in read_metrics(run) if "validation_loss" in line]
    return {
        **{name: facts[name] for name in FACTS},
        "validation_loss": evaluated["validation_loss"],
        "num_validation_tokens": evaluated["num_tokens"],
        "curve": {"columns": list(CURVE), "rows": curve},
    }


def teacher_row(work: Path) -> dict[str, Any] | None:
    """What is known of teacher and dictionary; None before they are made."""
    if not (work / "sae" / "manifest.json").exists():
        return None
    facts = read_json(work / "teacher" / "manifest.json")["facts"]
    losses = [line["validation_loss"] for line in read_metrics(work / "teacher") if "validation_loss" in line]
    quality = read_json(work / "sae" / "manifest.json")["facts"]["quality"]
    return {"train_tokens": facts["train_tokens"], "validation_loss": losses[-1], "sae": quality}


if __name__ == "__main__":
    main()
