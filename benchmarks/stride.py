"""What `concept_stride` 2 costs in loss and saves in time, at `small` size.

    python -m benchmarks.stride

The student is that of the recipe `gpt2-small-activation-labels`, exact and with a concept position after every second token
only. The teacher has the students' shape and twice their tokens. Runs of a seed share data, order, schedule and the decoder's
initial weights. A training step is timed in this process, exact and with stride in turn: the median of the paired ratios.
Every stage is recognised when it is finished and continued when it is not.
"""

from __future__ import annotations

import statistics
import time
from dataclasses import replace
from typing import Any

import torch

import cocomix
from benchmarks.common import options, store
from benchmarks.evidence.corpora import Places
from benchmarks.evidence.inputs import Inputs
from benchmarks.evidence.sizes import Regime, Teacher
from cocomix import EvalConfig, StudentConfig, evaluate, train
from cocomix.base.host import tune_process
from cocomix.modeling.flops import training_flops_per_token
from cocomix.training.recipes import find_recipe
from cocomix.training.sizes import SIZES
from cocomix.training.students import build_student

SIZE = SIZES["small"]
RECIPE = find_recipe(f"gpt2-{SIZE.name}-activation-labels")
#: Settings of the student, by the name of a row.
SETTINGS: dict[str, dict[str, int]] = {"exact": {}, "stride 2": {"concept_stride": 2}}
NUM_TOKENS = 256_000
REGIME = Regime(
    replace(SIZE, num_tokens=NUM_TOKENS),
    {"own": Teacher(SIZE.teacher, SIZE.teacher_layer, 2 * NUM_TOKENS)},
    rates=(SIZE.learning_rate,),
    dictionary_tokens=NUM_TOKENS,
)
SEEDS = (0, 1, 2)
NUM_STEPS = 20
#: Evenly spaced windows of the validation split for each loss.
NUM_WINDOWS = 1024


def main() -> None:
    arguments = options("stride", __doc__, "work").parse_args()
    tune_process()
    torch.set_num_threads(1)
    inputs = Inputs(Places(arguments.work), REGIME, "standard_library", "own")
    found = {name: {str(seed): loss_of(inputs, name, seed) for seed in SEEDS} for name in SETTINGS}
    rows: dict[str, Any] = {}
    for name, losses in found.items():
        changes = {seed: loss - found["exact"][seed] for seed, loss in losses.items()}
        rows[name] = {
            "settings": SETTINGS[name],
            "validation_loss": losses,
            "loss_change": changes,
            "mean_loss_change": statistics.fmean(changes.values()),
            "step": None if name == "exact" else measure(name),
        }
    store(arguments.output, "stride", num_tokens=NUM_TOKENS, recipe=RECIPE.name, rows=rows)


def student_of(name: str) -> StudentConfig:
    student = RECIPE.config().student
    return replace(student, mixer=student.mixer.changed(**SETTINGS[name]))


def loss_of(inputs: Inputs, name: str, seed: int) -> float:
    """Train a student and evaluate it."""
    output = inputs.folder / f"{name.replace(' ', '-')}-{seed}"
    config = cocomix.recipe(
        RECIPE.name,
        data=inputs.data,
        labels=inputs.labels(RECIPE.config().attribution),
        output=output,
        student=student_of(name),
        num_tokens=NUM_TOKENS,
        num_windows=inputs.num_windows(NUM_TOKENS),
        seed=seed,
        num_evaluations=1,
    )
    train(config)
    evaluation = output.with_name(f"{output.name}-evaluation")
    found = evaluate(EvalConfig(model=output, data=inputs.data, output=evaluation, max_windows=NUM_WINDOWS))
    return float(found["validation_loss"])


def measure(name: str) -> dict[str, Any]:
    """Processor seconds of a step, exact over `name`'s."""
    torch.manual_seed(0)
    ids = torch.randint(0, SIZE.vocab_size, (SIZE.batch_size, SIZE.context_length))
    labels = torch.randint(0, SIZE.num_concepts, (*ids.shape, 4))

    def seconds(model: torch.nn.Module) -> float:
        begun = time.process_time()
        model(input_ids=ids, labels=ids, concept_labels=labels).loss.backward()
        model.zero_grad()
        return time.process_time() - begun

    configs = (replace(RECIPE.config(), student=student_of(row)) for row in ("exact", name))
    models = [build_student(config, SIZE, config.student.mixer).train() for config in configs]
    pairs = [[seconds(model) for model in models] for _ in range(NUM_STEPS + 1)][1:]
    ratios = sorted(exact / other for exact, other in pairs)
    exact_flops, flops = (training_flops_per_token(model, SIZE.context_length) for model in models)
    return {
        "exact_over_this": {"median": statistics.median(ratios), "least": ratios[0], "most": ratios[-1]},
        "exact_seconds": statistics.median(exact for exact, _ in pairs),
        "seconds": statistics.median(other for _, other in pairs),
        "training_flops_over_exact": flops / exact_flops,
    }


if __name__ == "__main__":
    main()
