"""The model card of a run: `README.md` beside its weights, as the Hugging Face Hub shows it.

It is not part of the folder's content, so that people can add to it. `save_pretrained` and `push_to_hub` take it along.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cocomix.base.artifacts import CARD_NAME, atomic
from cocomix.base.formats import counted
from cocomix.base.kinds import read_metrics
from cocomix.mixers.config import MixerConfig
from cocomix.training.config import TrainConfig

_CARD = """---
library_name: cocomix
pipeline_tag: text-generation
tags:
- cocomix
---

# {title}

A language model trained with `cocomix train`. The table is about the run that wrote `{title}`: training its weights further
changes them, and no number here is about the result.

{table}

```python
import cocomix  # makes the architecture known to transformers
from transformers import AutoModelForCausalLM, AutoTokenizer

model = AutoModelForCausalLM.from_pretrained(FOLDER_OR_NAME)
tokenizer = AutoTokenizer.from_pretrained(FOLDER_OR_NAME)
```

## Licence

None is named yet. Choose one that the licences of the text and of the teacher allow, and add `license: NAME` to the head of
this file.
"""


def write_card(config: TrainConfig, mixer: MixerConfig, settings: Mapping[str, Any], facts: Mapping[str, Any]) -> None:
    """Write the card into a run's folder.

    Args:
        config: of the run, whose metrics are already in the folder.
        mixer: of the trained model, with its number of concepts.
        settings: those that determine the run's result, with its inputs' fingerprints.
        facts: those of the run's manifest.
    """
    student, inputs = config.student, settings["inputs"]
    on = [each for each in config.objectives if each.is_on(config)]
    losses = [line["validation_loss"] for line in read_metrics(config.output) if "validation_loss" in line]
    blocks = counted(student.num_layers or 0, "block")
    rows = {
        "decoder": f"{student.family}, {blocks} of width {student.hidden_size}, {counted(student.num_heads, 'head')}",
        "parameters": f"{facts['num_parameters']:,}",
        **_pretrained_rows(config, facts),
        "mixer": ", ".join(f"{name}: {value}" for name, value in mixer.settings().items()),
        "loss": " + ".join(f"{o.weight:g} · {o.name.replace('_', ' ')} ({o.schedule}, to {o.end:.0%})" for o in on),
        "data": f"{config.data.name}, {facts['train_tokens']:,} tokens",
        **{name: f"{path.name}" for name, path in _sources(config).items()},
        "inputs (SHA-256)": ", ".join(
            f"{name} {value[:12]}" for name, value in inputs.items() if isinstance(value, str)
        ),
        "validation loss": f"{losses[-1]:.4f} nats a token",
        "training": f"{counted(facts['num_steps'], 'step')}, {facts['train_flops']:.3g} FLOPs",
        "teacher's FLOPs": f"{facts['teacher_flops']:.3g}",
        "seed": str(config.seed),
    }
    table = "\n".join(["| | |", "|---|---|", *(f"| {name} | {value} |" for name, value in rows.items())])
    with atomic(config.output / CARD_NAME) as partial:
        partial.write_text(_CARD.format(title=config.output.name, table=table), encoding="utf-8")


def _pretrained_rows(config: TrainConfig, facts: Mapping[str, Any]) -> dict[str, str]:
    """What a pretrained student was, and what of it learnt."""
    student, rates = config.student, config.optimizer
    if student.pretrained is None:
        return {}
    learnt = f"{student.train}: {facts['num_learning_parameters']:,} parameters"
    if student.train == "above":
        learnt += f", from block {student.first_learning_block} on"
    old = rates.pretrained_learning_rate or rates.learning_rate / 10
    speed = f"{rates.learning_rate:g}, of the decoder's own weights {old:g}"
    return {"continued from": student.pretrained.name, "learnt": learnt, "learning rate": speed}


def _sources(config: TrainConfig) -> dict[str, Path]:
    """Where the run learnt from, beside its text."""
    paths = {
        "labels": config.labels,
        "teacher": config.teacher,
        "autoencoder": config.sae,
        "start of the mixer": config.student.start_from_sae,
    }
    return {name: path for name, path in paths.items() if path is not None}
