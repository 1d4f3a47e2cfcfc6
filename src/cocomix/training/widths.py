"""The width at which a plain decoder costs what another model costs, in parameters or in training FLOPs a token.

Models are built on the meta device, which holds shapes and no numbers.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch

from cocomix.mixers.config import NoMixerConfig
from cocomix.modeling.flops import training_flops_per_token
from cocomix.modeling.model import CoCoMixForCausalLM
from cocomix.training.config import StudentConfig, TrainConfig
from cocomix.training.students import TextShape, build_student, with_num_concepts

#: From here on, widths are multiples of 16, which the matrix units of accelerators like, and which the paper's baselines are.
ALIGNED_FROM_WIDTH, ALIGNMENT = 512, 16


@dataclass(frozen=True)
class MatchedWidth:
    """A plain decoder's width, and what it costs there."""

    hidden_size: int
    value: float
    """Parameters, or FLOPs a token."""
    target: float
    """What they should equal."""

    @property
    def difference(self) -> float:
        """What is left, as a share of the target."""
        return self.value / self.target - 1


def meta_model(config: TrainConfig, text: TextShape, num_concepts: int | None = None) -> CoCoMixForCausalLM:
    """The model of a run, without memory for its numbers."""
    with torch.device("meta"):
        return build_student(config, text, with_num_concepts(config, num_concepts))


def num_active_parameters(model: CoCoMixForCausalLM) -> int:
    """Those that a token's forward pass uses: the backbone's, and what the mixer counts of its own."""
    total: int = sum(parameter.numel() for parameter in model.backbone.parameters())
    own: int = model.mixer.config.num_active_parameters(model.config.hidden_size)
    return total + own


def equal_parameters_width(config: TrainConfig, text: TextShape) -> MatchedWidth:
    """Where a plain decoder of the same blocks and heads has as many active parameters as the run's model."""
    return _equal_width(config, text, lambda model: float(num_active_parameters(model)))


def equal_flops_width(config: TrainConfig, text: TextShape) -> MatchedWidth:
    """Where it takes as many training FLOPs a token (algorithmic)."""
    return _equal_width(config, text, lambda model: training_flops_per_token(model, text.context_length))


def _equal_width(config: TrainConfig, text: TextShape, cost: Callable[[CoCoMixForCausalLM], float]) -> MatchedWidth:
    """The nearest width that heads divide."""
    target, student = cost(meta_model(config, text)), config.student
    step = _step(student)

    @functools.cache
    def at(num_steps: int) -> MatchedWidth:
        plain = replace(student, hidden_size=num_steps * step, mixer=NoMixerConfig())
        return MatchedWidth(num_steps * step, cost(meta_model(replace(config, student=plain), text)), target)

    # Costs grow about as the square of the width: near there already, walk to the first width that is enough.
    guess = max(1, student.hidden_size // step)
    count = max(1, round(guess * math.sqrt(target / at(guess).value)))
    while at(count).value < target:
        count += 1
    while count > 1 and at(count - 1).value >= target:
        count -= 1
    return min(at(max(1, count - 1)), at(count), key=lambda width: abs(width.difference))


def _step(student: StudentConfig) -> int:
    """What a width is a multiple of: heads, an even number for each where positions are rotary."""
    heads = student.num_heads * (1 if student.family == "gpt2" else 2)
    if student.hidden_size < ALIGNED_FROM_WIDTH or ALIGNMENT % heads:
        return heads
    return ALIGNMENT
