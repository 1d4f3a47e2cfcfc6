"""What a step costs when parts of a pretrained student are frozen: its time, and its memory against the plan's.

    python -m benchmarks.learning

A Llama of random weights, a mixer behind its middle block, random tokens. For `train` mixer, above and all, and two ways of
mixing: the processor time of a step over that of `all` (they take turns; one thread), the same of the algorithmic FLOPs, and
how far the memory of a process of its own rises above what it held before, over the plan's.
"""

from __future__ import annotations

import gc
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import get_args

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from benchmarks.common import options, store
from cocomix.mixers.config import ConceptConfig
from cocomix.modeling.flops import training_flops_per_token
from cocomix.modeling.model import CoCoMixForCausalLM
from cocomix.tools.bench.memory import _ENVIRONMENT, _measured
from cocomix.tools.plan.memory import device_memory
from cocomix.training.config import Learning, StudentConfig, TrainConfig
from cocomix.training.optimizer import adamw
from cocomix.training.students import build_student, settled

NUM_BLOCKS, NUM_WINDOWS, NUM_LABELS, ROUNDS = 6, 4, 4, 5
MIXINGS = ("interleave_residual", "add")


@dataclass(frozen=True)
class Text:
    """The shape of the random text."""

    vocab_size: int = 2048
    context_length: int = 128
    eos_token_id: int = 0


def main() -> None:
    if sys.argv[1:2] == ["measure"]:
        config = _config(Path(sys.argv[2]), *sys.argv[3:])
        _step(config)()  # loads what libraries load when they are first used
        gc.collect()
        print(_measured(lambda: _two_steps(config)))
        return
    arguments = options("learning", __doc__).parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    shape = LlamaConfig(
        vocab_size=Text.vocab_size,
        hidden_size=256,
        intermediate_size=704,
        num_hidden_layers=NUM_BLOCKS,
        num_attention_heads=4,
        max_position_embeddings=Text.context_length,
        tie_word_embeddings=True,
    )
    with tempfile.TemporaryDirectory() as folder:
        LlamaForCausalLM(shape).save_pretrained(folder)
        results = {mixing: _compared(Path(folder), mixing) for mixing in MIXINGS}
    store(arguments.output, "learning", student=shape.to_diff_dict(), num_windows=NUM_WINDOWS, mixings=results)


def _compared(folder: Path, mixing: str) -> dict[str, dict[str, float]]:
    """Costs of a step, by what learns."""
    configs = {learning: _config(folder, mixing, learning) for learning in get_args(Learning)}
    steps = {learning: _step(config) for learning, config in configs.items()}
    seconds: dict[str, list[float]] = {learning: [] for learning in steps}
    for round_number in range(ROUNDS + 1):
        for learning, step in steps.items():
            started = time.process_time()
            step()
            if round_number:
                seconds[learning].append(time.process_time() - started)
    flops = {
        learning: training_flops_per_token(_student(config), Text.context_length)
        for learning, config in configs.items()
    }
    result = {}
    for learning, config in configs.items():
        planned = device_memory(config, Text(), 1024, 1, 1, NUM_WINDOWS, teacher=0).total
        command = [sys.executable, "-m", "benchmarks.learning", "measure", str(folder), mixing, learning]
        done = subprocess.run(command, env=os.environ | _ENVIRONMENT, capture_output=True, text=True, check=True)
        result[learning] = {
            "seconds": statistics.median(seconds[learning]),
            "time_over_all": statistics.median(
                own / whole for own, whole in zip(seconds[learning], seconds["all"], strict=True)
            ),
            "flops_over_all": flops[learning] / flops["all"],
            "planned_bytes": planned,
            "measured_bytes": int(done.stdout),
            "measured_over_planned": int(done.stdout) / planned,
        }
        print(mixing, learning, result[learning], flush=True)
    return result


def _config(folder: Path, mixing: str, learning: str) -> TrainConfig:
    mixer = ConceptConfig(mixing=mixing, layer=NUM_BLOCKS // 2 - 1, num_concepts=1024)
    student = StudentConfig(pretrained=folder, train=learning, mixer=mixer)  # type: ignore[arg-type]
    return settled(TrainConfig(student=student, batch_size=NUM_WINDOWS))


def _student(config: TrainConfig) -> CoCoMixForCausalLM:
    model = build_student(config, Text(), config.student.mixer).train()
    for parameter in model.parameters():  # loaded weights are pages of their file, which the process may share or drop
        parameter.data = parameter.data.clone()
    return model


def _step(config: TrainConfig) -> Callable[[], None]:
    """A function that runs one step, as `cocomix train` does."""
    model = _student(config)
    optimizer = adamw(model, config.optimizer, model.backbone)
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(Text.vocab_size, (NUM_WINDOWS, Text.context_length), generator=generator)
    concepts = torch.randint(1024, (*ids.shape, NUM_LABELS), generator=generator)

    def step() -> None:
        model(input_ids=ids, labels=ids, concept_labels=concepts).loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), config.optimizer.max_gradient_norm)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return step


def _two_steps(config: TrainConfig) -> int:
    """In the second step the moments are there too."""
    step = _step(config)
    step()
    step()
    return 0


if __name__ == "__main__":
    main()
