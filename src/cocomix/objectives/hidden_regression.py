"""Regression of the student's hidden states onto the teacher's: baselines without an autoencoder."""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np
import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn
from torch.nn import functional as F

from cocomix.mixers.concept import STD_EPSILON
from cocomix.modeling.backbones import adapter_for
from cocomix.modeling.flops import BACKWARD_OVER_FORWARD, span_flops_per_token
from cocomix.modeling.output import CoCoMixOutput
from cocomix.modeling.teacher import Teacher
from cocomix.objectives.base import Batch, Cost, CostInputs, Objective, Surroundings
from cocomix.objectives.config import HiddenRegressionConfig, ObjectiveConfig

# Shapes: B batch, T tokens, D width.

#: Standard deviation of the head's initial weights, as for the paper's concept head.
HEAD_STD = 0.02


class HiddenRegression(Objective):
    """Distance between a linear map of the student's residual stream and the teacher's.

    The student's is normalised per token as in the mixer, x = (h - mean) / (std + 1e-5), so that its scale does not matter.
    Above an interleaving mixer, a token is read where its next token is predicted, at its concept position.

    squared_error: the teacher's is normalised likewise; mean over its dimensions of (W x + b - y)^2.
    cosine: 1 - cos(W x + b, y), as layer alignment does (LET, arXiv 2602.05393); of the last block, y is what the
        teacher's head reads, because the residual stream before the final norm has a few huge dimensions.
    """

    Config: ClassVar[type[ObjectiveConfig]] = HiddenRegressionConfig
    name = "hidden_loss"
    needs_hidden_states = True
    head: nn.Linear

    def __init__(self, config: HiddenRegressionConfig, surroundings: Surroundings) -> None:
        super().__init__(config, surroundings)
        model = surroundings.teacher()
        self.teacher = Teacher(model, _teacher_layer(config, adapter_for(model).num_blocks))
        self.is_cosine = config.loss == "cosine"
        self.layer, self.layout = config.student_layer(surroundings), surroundings.mixer.layout
        self.head = nn.utils.skip_init(nn.Linear, surroundings.hidden_size, int(model.config.hidden_size))
        # A separate stream: torch's, with the same seed, would repeat numbers of the student's embedding.
        generator = np.random.default_rng([surroundings.seed, *self.name.encode()])
        drawn = generator.normal(0.0, HEAD_STD, self.head.weight.shape)
        with torch.no_grad():
            self.head.weight.copy_(torch.from_numpy(drawn))
            self.head.bias.zero_()

    def count(self, batch: Batch) -> Int64[Tensor, ""]:
        return torch.tensor(batch.windows.input_ids.numel())

    def total(self, batch: Batch, output: CoCoMixOutput) -> Float[Tensor, ""]:
        assert output.hidden_states is not None
        target = self._target(self.teacher.residual(**batch.windows.inputs()))
        hidden = output.hidden_states[self.layer + 1]
        if hidden.shape[1] != target.shape[1]:
            hidden = hidden[:, self.layout.span(0, target.shape[1], hidden.device).read]
        predicted = self.head(normalized(hidden.float())).float()
        if self.is_cosine:
            return (1 - F.cosine_similarity(predicted, target, dim=-1)).sum()
        return F.mse_loss(predicted, target, reduction="sum") / target.shape[-1]

    @torch.no_grad()
    def _target(self, residual: Float[Tensor, "B T D"]) -> Float[Tensor, "B T D"]:
        if not self.is_cosine:
            return normalized(residual.float())
        adapter = self.teacher.adapter
        is_last = self.teacher.layer == adapter.num_blocks - 1
        return (adapter.final_norm(residual) if is_last else residual).float()

    def culprit(self, batch: Batch) -> str | None:
        if bool(self.teacher.residual(**batch.windows.inputs()).isfinite().all()):
            return None
        return f"the residual stream of the teacher {self.teacher.model.config.name_or_path} after block {self.teacher.layer}"

    def teacher_flops_per_token(self, context_length: int) -> float:
        return span_flops_per_token(self.teacher.adapter, 0, self.teacher.layer + 1, context_length)

    def student_flops_per_token(self) -> float:
        return _head_flops(self.head.weight.numel())

    @classmethod
    def cost(cls, config: Any, inputs: CostInputs) -> Cost:
        adapter = adapter_for(inputs.teacher)
        layer = _teacher_layer(config, adapter.num_blocks)
        return Cost(
            targets=span_flops_per_token(adapter, 0, layer + 1, inputs.context_length),
            student=_head_flops(inputs.run.student.hidden_size * int(inputs.teacher.config.hidden_size)),
        )


def normalized(hidden: Float[Tensor, "B T D"]) -> Float[Tensor, "B T D"]:
    """Scale to mean 0 and (unbiased) standard deviation 1 over each token's dimensions, as in the mixer."""
    return (hidden - hidden.mean(-1, keepdim=True)) / (hidden.std(-1, keepdim=True) + STD_EPSILON)


def _head_flops(num_weights: int) -> float:
    return (1 + BACKWARD_OVER_FORWARD) * 2 * num_weights


def _teacher_layer(config: HiddenRegressionConfig, num_blocks: int) -> int:
    if config.teacher_layer is not None:
        return config.teacher_layer
    return num_blocks - 1 if config.loss == "cosine" else (num_blocks - 1) // 2
