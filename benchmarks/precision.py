"""bfloat16 beside float32 on a CPU: time, what it changes in labels, and what a student's loss is in the end.

    python -m benchmarks.precision

*speed*: the same weights in both precisions take turns in this process; processor time, one thread. *generation*: CoCoMix and
plain next-token prediction write a text each, a part of it in turn. *loss*: students of the recipe
`gpt2-tiny-cocomix`, a quarter of its tokens, on the source of Python's standard library; runs of a seed share initial weights
and the order of data. `--only` measures a part of a result again.
"""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from transformers import GPT2LMHeadModel

import cocomix
from benchmarks.common import options, store
from benchmarks.variants import final_loss
from cocomix import (
    ComputeConfig,
    ConceptDataset,
    ConceptExtractor,
    ExtractConfig,
    ParallelConfig,
    PrepareConfig,
    TokenDataset,
    TrainSaeConfig,
    extract,
    prepare,
    train,
    train_sae,
)
from cocomix.base.artifacts import read_json
from cocomix.base.compute import Precision
from cocomix.base.devices import Machine
from cocomix.base.host import tune_process
from cocomix.labels.config import AttributionConfig
from cocomix.mixers.config import NoMixerConfig
from cocomix.modeling.loading import _placed
from cocomix.modeling.weight_order import order_for_single_tokens
from cocomix.sae.model import SparseAutoencoder, SparseAutoencoderConfig
from cocomix.sae.update import SaeUpdater
from cocomix.tools.bench.command import machine
from cocomix.tools.bench.extract import ATTRIBUTION, ExtractShape
from cocomix.tools.bench.generate import Sequence
from cocomix.tools.bench.sae import LEARNING_RATE, SaeShape
from cocomix.tools.bench.students import student_config
from cocomix.tools.bench.timing import interleaved, paired_ratio, spread_of
from cocomix.tools.bench.train import TrainShape, draw, step_of, student
from cocomix.training.recipes import find_recipe, ntp
from cocomix.training.sizes import SIZES

PRECISIONS: tuple[Precision, ...] = ("float32", "bfloat16")
ROUNDS = 7
#: The paper's smallest model, and the demo's.
PAPER = TrainShape(batch=2)
DEMO = TrainShape(
    width=128, num_blocks=4, num_heads=4, layer=0, vocab_size=2048, num_concepts=1024, context=128, batch=8
)
EXTRACT = ExtractShape(batch=1)
SAE = SaeShape(tokens_per_update=512)
NUM_PROMPT, NUM_TOKENS, NUM_TOKENS_A_TURN = 128, 256, 32

TINY = SIZES["tiny"]
#: A quarter of the recipe's; the teacher sees eight times as many.
STUDENT_TOKENS = TINY.num_tokens // 4
RECIPE = f"gpt2-{TINY.name}-cocomix"
SEEDS = (0, 1, 2)
#: A student's row: the precision of its labels, and its own.
STUDENTS: dict[str, tuple[Precision, Precision]] = {
    "float32": ("float32", "float32"),
    "bfloat16": ("float32", "bfloat16"),
    "float32, labels in bfloat16": ("bfloat16", "float32"),
}


def main() -> None:
    parser = options("precision", __doc__, "work")
    parts: dict[str, Callable[[Path], dict[str, Any]]] = {"speed": speed, "generation": generation, "loss": loss}
    parser.add_argument("--only", nargs="*", default=list(parts), choices=list(parts), help="parts to measure")
    arguments = parser.parse_args()
    tune_process()
    torch.set_num_threads(1)
    found = read_json(arguments.output) if arguments.output.exists() else {}
    result = {name: found[name] for name in parts if name in found}
    for name in arguments.only:
        result[name] = parts[name](arguments.work) | {"processor": machine(torch.device("cpu"))["processor"]}
        store(arguments.output, "precision", **result)


def speed(_: Path) -> dict[str, Any]:
    """Processor seconds of a piece of work in both precisions, and their ratio."""
    rows = {}
    for name, case in CASES.items():
        contestants = {precision: case(Machine(precision=precision)) for precision in PRECISIONS}
        times = interleaved(contestants, ROUNDS, time.process_time)
        rows[name] = {precision: asdict(spread_of(seconds)) for precision, seconds in times.items()}
        rows[name]["times_as_fast"] = asdict(paired_ratio(times, *PRECISIONS))
        print(name, rows[name], flush=True)
    return {"rounds": ROUNDS, "rows": rows}


def training(shape: TrainShape, machine: Machine) -> Callable[[], object]:
    return step_of(student(shape), draw(shape, 0), machine.precision)


def extraction(machine: Machine) -> Callable[[], object]:
    """Labels by attribution of a window."""
    config = student_config(
        width=EXTRACT.width,
        num_blocks=EXTRACT.num_blocks,
        num_heads=EXTRACT.num_heads,
        vocab_size=EXTRACT.vocab_size,
        num_positions=EXTRACT.context,
        mixer=NoMixerConfig(),
    )
    torch.manual_seed(0)
    teacher = _placed(GPT2LMHeadModel(config.backbone_config).eval().requires_grad_(False), machine)
    sae = SparseAutoencoder(SparseAutoencoderConfig(EXTRACT.width, EXTRACT.num_latents, EXTRACT.num_active))
    extractor = ConceptExtractor(teacher, sae.requires_grad_(False), EXTRACT.layer, ATTRIBUTION)
    ids = torch.randint(EXTRACT.vocab_size, (EXTRACT.batch, EXTRACT.context))

    def label() -> None:
        with machine.products():
            extractor(ids)

    return label


def autoencoder(machine: Machine) -> Callable[[], object]:
    """An update on given activations."""
    torch.manual_seed(0)
    sae = SparseAutoencoder(SparseAutoencoderConfig(SAE.width, SAE.num_latents, SAE.k))
    h = torch.randn(SAE.tokens_per_update, SAE.width)
    silent = {"dead_after_tokens": 10_000_000, "num_auxiliary_latents": SAE.width // 2}
    updater = SaeUpdater(sae, SAE.k, machine=machine, **silent)
    return lambda: updater.update(h, SAE.tokens_per_update, LEARNING_RATE)


def writer(machine: Machine, *, has_concepts: bool) -> Callable[[], None]:
    """A function that continues a text by a turn's tokens; the text begins so that the second turn comes after the prompt."""
    shape = replace(PAPER, context=NUM_PROMPT + NUM_TOKENS)
    model = _placed(student(shape, has_concepts=has_concepts).eval(), machine)
    order_for_single_tokens(model)  # as `cocomix generate` does
    prompt = draw(replace(shape, batch=1, context=NUM_PROMPT - NUM_TOKENS_A_TURN), 0).ids
    with torch.inference_mode(), machine.products():
        sequence = Sequence(model, prompt, use_cache=True)

    def write() -> None:
        with machine.products():
            for _ in range(NUM_TOKENS_A_TURN):
                sequence.grow()

    return write


CASES: dict[str, Callable[[Machine], Callable[[], object]]] = {
    "training step, 69M": lambda machine: training(PAPER, machine),
    "training step, the demo's size": lambda machine: training(DEMO, machine),
    "labels by attribution of a window": extraction,
    "an autoencoder's update": autoencoder,
}


def generation(_: Path) -> dict[str, Any]:
    """Processor time of CoCoMix's tokens, in both precisions, and of NTP's, without that of the prompt."""
    writers = {
        f"CoCoMix, {precision}": writer(Machine(precision=precision), has_concepts=True) for precision in PRECISIONS
    }
    writers["NTP"] = writer(Machine(), has_concepts=False)
    times = interleaved(writers, NUM_TOKENS // NUM_TOKENS_A_TURN, time.process_time)
    return {
        "num_prompt_tokens": NUM_PROMPT,
        "num_tokens": NUM_TOKENS,
        "num_tokens_a_turn": NUM_TOKENS_A_TURN,
        "seconds": {name: sum(seconds) for name, seconds in times.items()},
        "over_ntp": sum(times["CoCoMix, float32"]) / sum(times["NTP"]),
        "over_ntp_by_turn": asdict(paired_ratio(times, "CoCoMix, float32", "NTP")),
        "times_as_fast_in_bfloat16": asdict(
            paired_ratio(times, *(f"CoCoMix, {precision}" for precision in PRECISIONS))
        ),
    }


def loss(work: Path) -> dict[str, Any]:
    """Final losses, and how many labels of bfloat16 are those of float32."""
    attribution = find_recipe(RECIPE).config().attribution
    data, num_windows = work / "data", math.ceil(STUDENT_TOKENS / TINY.context_length)
    shape = {"vocab_size": TINY.vocab_size, "context_length": TINY.context_length}
    prepare(PrepareConfig(output=data, max_bytes=4_000_000, **shape))
    teacher = replace(ntp(TINY), student=TINY.teacher, num_tokens=2 * TINY.num_tokens, num_evaluations=1)
    train(replace(teacher, data=data, output=work / "teacher"))
    sources = {"teacher": work / "teacher", "data": data}
    sae = {"layer": TINY.teacher_layer, "num_latents": TINY.num_concepts, "num_counted_tokens": 0}
    train_sae(TrainSaeConfig(output=work / "sae", num_tokens=STUDENT_TOKENS, **sources, **sae))
    tokens, labels, same = TokenDataset(data, "train"), {}, {}
    for criterion in (attribution.criterion, "activation_value"):
        chosen = attribution if criterion == attribution.criterion else AttributionConfig(criterion="activation_value")
        for precision in PRECISIONS:
            labels[criterion, precision] = output = work / f"labels-{criterion}-{precision}"
            compute = {"attribution": chosen, "compute": ComputeConfig(precision=precision, device="cpu")}
            extract(ExtractConfig(output=output, sae=work / "sae", num_windows=num_windows, **sources, **compute))
        same[criterion] = share_of_same(
            *(labels[criterion, precision] for precision in PRECISIONS), tokens, num_windows
        )
    losses: dict[str, list[float]] = {}
    for name, (of_labels, own) in STUDENTS.items():
        seeds = SEEDS if of_labels == "float32" else SEEDS[:1]
        runs = [work / f"{name.replace(', ', '-').replace(' ', '-')}-{seed}" for seed in seeds]
        for seed, output in zip(seeds, runs, strict=True):
            config = {"num_tokens": STUDENT_TOKENS, "num_windows": num_windows, "num_evaluations": 1, "seed": seed}
            parallel = ParallelConfig(device="cpu", precision=own)
            paths = {"data": data, "labels": labels[attribution.criterion, of_labels], "output": output}
            train(cocomix.recipe(RECIPE, parallel=parallel, **paths, **config))
        losses[name] = [final_loss(run) for run in runs]
    differences = {
        name: [value - first for value, first in zip(values, losses["float32"], strict=False)]
        for name, values in losses.items()
    }
    return {
        "recipe": RECIPE,
        "num_tokens": STUDENT_TOKENS,
        "seeds": list(SEEDS),
        "share_of_same_labels": same,
        "validation_loss": losses,
        "difference": differences,
        "mean_difference": {name: statistics.fmean(values) for name, values in differences.items()},
    }


def share_of_same(first: Path, second: Path, tokens: TokenDataset, num_windows: int) -> float:
    """The share of one dataset's labels that are labels of the same position in the other."""
    one, other = (ConceptDataset(path, tokens).labels(range(num_windows)) for path in (first, second))
    is_same = (one.unsqueeze(-1) == other.unsqueeze(-2)).any(-1)
    return float(is_same[one >= 0].float().mean())


if __name__ == "__main__":
    main()
