"""What a step costs when parts of a pretrained student are frozen: its time, and its memory against the plan's.

    python -m benchmarks.learning

A Llama of random weights, a mixer behind its middle block, random tokens. For `train` mixer, above and all: the median time of
a step (turns are taken), the algorithmic FLOPs, and how far a process of its own rises above what it held before.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import get_args

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from benchmarks.common import options, store
from cocomix.base.host import tune_process
from cocomix.mixers.config import ConceptConfig
from cocomix.modeling.flops import training_flops_per_token
from cocomix.tools.bench.memory import _ENVIRONMENT, _measured
from cocomix.tools.bench.timing import interleaved, paired_ratio, spread_of
from cocomix.tools.plan.memory import device_memory
from cocomix.training.config import Learning, StudentConfig, TrainConfig
from cocomix.training.optimizer import adamw
from cocomix.training.students import build_student, settled

NUM_BLOCKS, NUM_WINDOWS, NUM_LABELS, ROUNDS = 6, 4, 4, 5
MIXER = ConceptConfig(mixing="interleave_residual", layer=NUM_BLOCKS // 2 - 1, num_concepts=1024)


@dataclass(frozen=True)
class Text:
    """The shape of the random text."""

    vocab_size: int = 2048
    context_length: int = 128
    eos_token_id: int = 0


def main() -> None:
    if len(sys.argv) == 4 and sys.argv[1] == "measure":
        learning, folder = sys.argv[2:]
        _step(_config(folder, "all"))()  # loads what libraries load when they are first used
        print(_measured(lambda: _held(_step(_config(folder, learning)))))
        return
    arguments = options("learning", __doc__).parse_args()
    tune_process()
    with tempfile.TemporaryDirectory() as folder:
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
        LlamaForCausalLM(shape).save_pretrained(folder)
        modes = get_args(Learning)
        times = interleaved({learning: _step(_config(folder, learning)) for learning in modes}, ROUNDS)
        result = {}
        for learning in modes:
            config = _config(folder, learning)
            planned = device_memory(config, Text(), MIXER.num_concepts, 1, NUM_WINDOWS, teacher=0).total
            command = [sys.executable, "-m", "benchmarks.learning", "measure", learning, folder]
            done = subprocess.run(command, env=os.environ | _ENVIRONMENT, capture_output=True, text=True, check=True)
            measured = int(done.stdout)
            result[learning] = {
                "seconds": spread_of(times[learning]).median,
                "time_over_all": paired_ratio(times, learning, "all").median,
                "flops_per_token": training_flops_per_token(build_student(config, Text(), MIXER), Text.context_length),
                "planned_bytes": planned,
                "measured_bytes": measured,
                "measured_over_planned": measured / planned,
            }
            print(learning, json.dumps(result[learning]))
    store(arguments.output, "learning", student=shape.to_diff_dict(), num_windows=NUM_WINDOWS, learning=result)


def _config(folder: str, learning: str) -> TrainConfig:
    student = StudentConfig(pretrained=Path(folder), train=learning, mixer=MIXER)  # type: ignore[arg-type]
    return settled(TrainConfig(student=student, batch_size=NUM_WINDOWS))


def _step(config: TrainConfig) -> Callable[[], None]:
    """A function that runs one step, as `cocomix train` does."""
    model = build_student(config, Text(), MIXER).train()
    optimizer = adamw(model, config.optimizer, model.backbone)
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(Text.vocab_size, (NUM_WINDOWS, Text.context_length), generator=generator)
    concepts = torch.randint(MIXER.known_concepts, (*ids.shape, NUM_LABELS), generator=generator)

    def step() -> None:
        model(input_ids=ids, labels=ids, concept_labels=concepts).loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), config.optimizer.max_gradient_norm)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return step


def _held(step: Callable[[], None]) -> int:
    """Two steps: in the second one the moments are there too."""
    step()
    step()
    return 0


if __name__ == "__main__":
    main()
