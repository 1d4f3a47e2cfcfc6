"""What a step minimises: the `Objective` seam.

Each objective gives a sum over its targets and, from the batch alone, how many targets there are. The loop divides once, by
the count of the whole step, so that accumulation, packing and uneven labels do not change the result.
"""

from __future__ import annotations

import abc
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int64
from torch import Tensor
from torch.nn import functional as F
from transformers import PreTrainedModel

from cocomix.base.labels import IGNORED_LABEL
from cocomix.data.token_dataset import Windows
from cocomix.modeling.model import CoCoMixOutput

# Shapes: B batch, T tokens, V vocabulary, A labels a token.


@dataclass(frozen=True)
class Batch:
    """Some windows of a step."""

    windows: Windows
    concept_labels: Int64[Tensor, "B T A"] | None = None


class Objective(abc.ABC):
    """A weighted term of the loss.

    Args:
        weight: its factor in the sum.
    """

    name: str
    needs_logits = False

    def __init__(self, weight: float = 1.0) -> None:
        self.weight = weight

    @abc.abstractmethod
    def count(self, batch: Batch) -> Int64[Tensor, ""]:
        """Targets in the batch."""

    @abc.abstractmethod
    def total(self, batch: Batch, output: CoCoMixOutput) -> Float[Tensor, ""]:
        """Sum of the loss over the batch's targets."""


class NextToken(Objective):
    """-log p(x_{t+1} | x_{<=t})."""

    name = "lm_loss"

    def count(self, batch: Batch) -> Int64[Tensor, ""]:
        return torch.tensor(batch.windows.input_ids[:, 1:].numel())

    def total(self, batch: Batch, output: CoCoMixOutput) -> Float[Tensor, ""]:
        assert output.lm_loss_sum is not None
        return output.lm_loss_sum


class Concepts(Objective):
    """mean_k CE(z, I_k) over the labelled positions (paper, equation 4)."""

    name = "concept_loss"

    def count(self, batch: Batch) -> Int64[Tensor, ""]:
        assert batch.concept_labels is not None
        return (batch.concept_labels != IGNORED_LABEL).all(-1).sum()

    def total(self, batch: Batch, output: CoCoMixOutput) -> Float[Tensor, ""]:
        assert output.concept_loss_sum is not None
        return output.concept_loss_sum


class Distillation(Objective):
    """temperature^2 * KL(teacher || student) of the next-token distributions (Hinton et al., arXiv 1503.02531).

    Args:
        weight: its factor in the sum.
        teacher: frozen causal LM with the student's tokenizer.
        temperature: divides both models' logits.
    """

    name = "distillation_loss"
    needs_logits = True

    def __init__(self, weight: float, teacher: PreTrainedModel, temperature: float = 1.0) -> None:
        super().__init__(weight)
        self.teacher = teacher
        self.temperature = temperature

    def count(self, batch: Batch) -> Int64[Tensor, ""]:
        return torch.tensor(batch.windows.input_ids[:, 1:].numel())

    def total(self, batch: Batch, output: CoCoMixOutput) -> Float[Tensor, ""]:
        assert output.logits is not None
        with torch.no_grad():
            target = self.teacher(**batch.windows.inputs(), use_cache=False).logits[:, :-1] / self.temperature
            target = target[..., : output.logits.shape[-1]]  # rows beyond the tokenizer's tokens are padding
        divergence = F.kl_div(
            (output.logits[:, :-1] / self.temperature).log_softmax(-1),
            target.log_softmax(-1),
            reduction="sum",
            log_target=True,
        )
        return self.temperature**2 * divergence
