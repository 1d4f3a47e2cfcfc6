"""Multi-token prediction: each position also predicts tokens after the next one, without a teacher."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from cocomix.modeling.output import CoCoMixOutput
from cocomix.objectives.base import Batch, Objective
from cocomix.objectives.config import MultiTokenConfig, ObjectiveConfig


class MultiToken(Objective):
    """sum_j 2^(1 - j) * -log p(x_{t+1+j} | x_{<=t}), j = 1 .. `num_more_tokens`, from the logits of the next token.

    Gloeckle et al. (arXiv 2404.19737) have a head for each distance, and gain at larger sizes. Here, as in the public speed
    records at GPT-2's size, one prediction serves all distances; it is meant for a weight that falls to 0 before the end.
    """

    Config: ClassVar[type[ObjectiveConfig]] = MultiTokenConfig
    name = "multi_token_loss"
    needs_logits = True

    def count(self, batch: Batch) -> Int64[Tensor, ""]:
        return torch.tensor(batch.windows.input_ids[:, 2:].numel())

    def total(self, batch: Batch, output: CoCoMixOutput) -> Float[Tensor, ""]:
        assert output.logits is not None
        ids, logits = batch.windows.input_ids, output.logits.float()
        log_partition = logits.logsumexp(-1)
        total = logits.new_zeros(())
        for j in range(1, min(self.config.num_more_tokens, ids.shape[1] - 2) + 1):
            targets = ids[:, 1 + j :]
            positions = targets.shape[1]
            chosen = logits[:, :positions].gather(-1, targets.unsqueeze(-1)).squeeze(-1)
            total = total + 0.5 ** (j - 1) * (log_partition[:, :positions] - chosen).sum()
        return total

    @classmethod
    def memory_bytes(cls, config: Any, num_tokens: int, vocab_size: int) -> float:
        return 4 * vocab_size * num_tokens  # the softmax of the backward, in float32
