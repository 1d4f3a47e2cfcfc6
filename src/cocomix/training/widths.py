"""The width at which a plain decoder costs as much as another model, in parameters or in training FLOPs per token.

Models are built on the meta device, which holds shapes but no numbers.
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

#: From this width on, widths are multiples of 16, as accelerators prefer and as in the paper's baselines.
ALIGNED_FROM_WIDTH, ALIGNMENT = 512, 16


@dataclass(frozen=True)
class MatchedWidth:
    """A plain decoder's width, and its cost at that width."""

    hidden_size: int
    value: float
    """Cost of the plain decoder: parameters, or FLOPs per token."""
    target: float
    """Cost of the model to match."""

    @property
    def difference(self) -> float:
        """Difference from the target, as a share of it."""
        return self.value / self.target - 1


def meta_model(config: TrainConfig, text: TextShape, num_concepts: int | None = None) -> CoCoMixForCausalLM:
    """The model of a run on the meta device."""
    with torch.device("meta"):
        return build_student(config, text, with_num_concepts(config, num_concepts), only_shape=True)


def num_active_parameters(model: CoCoMixForCausalLM) -> int:
    """Number of parameters that a token's forward pass uses: all of the backbone's, and the mixer's active ones."""
    total: int = sum(parameter.numel() for parameter in model.backbone.parameters())
    own: int = model.mixer.config.num_active_parameters(model.config.hidden_size)
    return total + own


def equal_parameters_width(config: TrainConfig, text: TextShape) -> MatchedWidth:
    """The width at which a plain decoder with equal blocks and heads has as many active parameters as the run's model."""
    return _equal_width(config, text, lambda model: float(num_active_parameters(model)))


def equal_flops_width(config: TrainConfig, text: TextShape) -> MatchedWidth:
    """The width at which a plain decoder takes as many (algorithmic) training FLOPs per token as the run's model."""
    T, share = text.context_length, config.concept_loss.end
    return _equal_width(config, text, lambda model: training_flops_per_token(model, T, "algorithmic", share))


def _equal_width(config: TrainConfig, text: TextShape, cost: Callable[[CoCoMixForCausalLM], float]) -> MatchedWidth:
    """The width of a plain decoder, among multiples of `_step`, whose cost is nearest."""
    target, student = cost(meta_model(config, text)), config.student
    step = _step(student)

    @functools.cache
    def at(num_steps: int) -> MatchedWidth:
        plain = replace(student, hidden_size=num_steps * step, mixer=NoMixerConfig())
        return MatchedWidth(num_steps * step, cost(meta_model(replace(config, student=plain), text)), target)

    # Costs grow about as the square of the width: start close, then walk to the smallest width that is enough.
    guess = max(1, student.hidden_size // step)
    count = max(1, round(guess * math.sqrt(target / at(guess).value)))
    while at(count).value < target:
        count += 1
    while count > 1 and at(count - 1).value >= target:
        count -= 1
    return min(at(max(1, count - 1)), at(count), key=lambda width: abs(width.difference))


def _step(student: StudentConfig) -> int:
    """The number that widths are multiples of: that of heads, twice that if positions are rotary, or `ALIGNMENT`."""
    heads = student.num_heads * (1 if student.family == "gpt2" else 2)
    if student.hidden_size < ALIGNED_FROM_WIDTH or ALIGNMENT % heads:
        return heads
    return ALIGNMENT
