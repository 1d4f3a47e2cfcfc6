"""The next-token objective."""

from __future__ import annotations

from typing import ClassVar

from jaxtyping import Float, Int64
from torch import Tensor

from cocomix.modeling.output import CoCoMixOutput
from cocomix.objectives.base import Batch, Objective, num_next_tokens
from cocomix.objectives.config import NextTokenConfig, ObjectiveConfig


class NextToken(Objective):
    """Next-token loss -log p(x_{t+1} | x_{<=t}), in nats."""

    Config: ClassVar[type[ObjectiveConfig]] = NextTokenConfig
    name = "lm_loss"

    def count(self, batch: Batch) -> Int64[Tensor, ""]:
        return num_next_tokens(batch)

    def total(self, batch: Batch, output: CoCoMixOutput) -> Float[Tensor, ""]:
        assert output.lm_loss_sum is not None
        return output.lm_loss_sum
