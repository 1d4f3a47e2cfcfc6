"""What the optional approximations cost in loss and save in time, at `small` size.

    python -m benchmarks.approximations --work runs/approximations --output benchmarks/results/approximations.json

The student is that of the recipe `gpt2-small-activation-labels`; data, teacher, dictionary and labels are made as
`benchmarks.recipes` makes them. All runs of a seed share data, order, schedule and the backbone's initial weights. A training
step is timed in this process, exact and approximate in turn, and given as the median of paired ratios. Every stage is
recognised when it is finished and continued when it is not, and the result is written after every run. `--only NAME` runs
some approximations, `--tokens N` makes all runs shorter, for a try.
"""

from __future__ import annotations

import argparse
import os
import platform
import shlex
import statistics
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from cocomix.training.numbers import parse_count

import cocomix
from benchmarks.recipes import SIZE, Inputs, evaluation
from cocomix import EvalConfig, evaluate, train
from cocomix.base.artifacts import read_json, write_json
from cocomix.base.host import tune_process
from cocomix.base.progress import say
from cocomix.modeling.flops import training_flops_per_token
from cocomix.modeling.model import CoCoMixForCausalLM
from cocomix.training.config import StudentConfig
from cocomix.training.recipes import find_recipe
from cocomix.training.students import build_student

RECIPE = find_recipe(f"gpt2-{SIZE.name}-activation-labels")
EXACT = "exact"
#: Settings of the student, by the name of a row.
SETTINGS: dict[str, dict[str, int]] = {
    EXACT: {},
    "stride 2": {"concept_stride": 2},
    "window 16": {"concept_window": 16},
    "groups 64": {"concept_groups": 64},
}
SEEDS = (0, 1, 2)
NUM_TOKENS = "256K"
NUM_STEPS = 20
#: Behind each loss: evenly spaced windows of the validation split.
NUM_WINDOWS = 1024


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, default=Path("runs/approximations"), help="folder for data and runs")
    parser.add_argument("--output", type=Path, default=Path("benchmarks/results/approximations.json"))
    parser.add_argument("--only", nargs="*", default=list(SETTINGS), choices=list(SETTINGS), metavar="NAME")
    parser.add_argument("--seeds", nargs="*", type=int, default=list(SEEDS))
    parser.add_argument("--tokens", default=NUM_TOKENS, help="of each student, such as 256K; the teacher has twice")
    arguments = parser.parse_args()
    tune_process()
    inputs = Inputs(arguments.work, parse_count(arguments.tokens, "--tokens"))
    for seed in arguments.seeds:
        for name in arguments.only:
            say(f"{name}, seed {seed}")
            run(inputs, name, seed)
            write_result(arguments.output, inputs)
    for name in arguments.only:
        if name != EXACT:
            say(f"{name}: time of a step")
            measure(inputs, name)
            write_result(arguments.output, inputs)


def student_of(name: str) -> StudentConfig:
    return replace(RECIPE.draft().student, **SETTINGS[name])


def folder(inputs: Inputs, name: str, seed: int) -> Path:
    return inputs.work / f"{name.replace(' ', '-')}-{seed}"


def run(inputs: Inputs, name: str, seed: int) -> None:
    """One student and its evaluation."""
    output = folder(inputs, name, seed)
    config = cocomix.recipe(
        RECIPE.name,
        data=inputs.data,
        labels=inputs.labels(RECIPE.draft().attribution),
        output=output,
        student=student_of(name),
        num_tokens=inputs.num_tokens,
        num_windows=inputs.num_windows,
        seed=seed,
        num_evaluations=1,
    )
    train(config)
    evaluate(EvalConfig(model=output, data=inputs.data, output=evaluation(output), max_windows=NUM_WINDOWS))


def model_of(name: str) -> CoCoMixForCausalLM:
    config = replace(RECIPE.draft(), student=student_of(name))
    return build_student(config, SIZE, SIZE.num_concepts).train()


def measure(inputs: Inputs, name: str) -> None:
    """Processor seconds of a step, exact over approximate: the median of pairs measured in turn."""
    path = times_of(inputs, name)
    if path.exists():
        return
    torch.manual_seed(0)
    shape = (SIZE.batch_size, SIZE.context_length)
    ids = torch.randint(0, SIZE.vocab_size, shape)
    labels = torch.randint(0, SIZE.num_concepts, (*shape, 4))

    def seconds(model: CoCoMixForCausalLM) -> float:
        begun = time.process_time()
        model(input_ids=ids, labels=ids, concept_labels=labels).loss.backward()
        model.zero_grad()
        return time.process_time() - begun

    exact, other = model_of(EXACT), model_of(name)
    for model in (exact, other):
        seconds(model)
    pairs = [(seconds(exact), seconds(other)) for _ in range(NUM_STEPS)]
    ratios = sorted(a / b for a, b in pairs)
    flops = [training_flops_per_token(model, SIZE.context_length) for model in (exact, other)]
    write_json(
        path,
        {
            "exact_over_this": {"median": statistics.median(ratios), "least": ratios[0], "most": ratios[-1]},
            "exact_seconds": statistics.median(a for a, _ in pairs),
            "seconds": statistics.median(b for _, b in pairs),
            "training_flops_over_exact": flops[1] / flops[0],
        },
    )


def times_of(inputs: Inputs, name: str) -> Path:
    return inputs.work / f"{name.replace(' ', '-')}-time.json"


def write_result(output: Path, inputs: Inputs) -> None:
    """All runs that are finished in the work folder, with the loss change against the exact run of the same seed."""
    rows: dict[str, Any] = {}
    for name, settings in SETTINGS.items():
        losses = {}
        for seed in range(100):
            path = evaluation(folder(inputs, name, seed)) / "evaluation.json"
            if path.exists():
                losses[str(seed)] = read_json(path)["validation_loss"]
        times = times_of(inputs, name)
        if losses or times.exists():
            rows[name] = {
                "settings": settings,
                "validation_loss": losses,
                "step": read_json(times) if times.exists() else None,
            }
    exact = rows.get(EXACT, {}).get("validation_loss", {})
    for row in rows.values():
        changes = {seed: loss - exact[seed] for seed, loss in row["validation_loss"].items() if seed in exact}
        row["loss_change"] = changes
        row["mean_loss_change"] = statistics.fmean(changes.values()) if changes else None
    words = ["python", "-m", "benchmarks.approximations"]
    if inputs.num_tokens != parse_count(NUM_TOKENS, "--tokens"):
        words += ["--tokens", str(inputs.num_tokens)]
    output.parent.mkdir(parents=True, exist_ok=True)
    machine = {
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        "torch": torch.__version__,
    }
    write_json(
        output,
        {
            "command": shlex.join(words),
            "machine": machine,
            "num_tokens": inputs.num_tokens,
            "recipe": RECIPE.name,
            "rows": rows,
        },
    )


if __name__ == "__main__":
    main()
