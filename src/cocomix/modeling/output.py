"""What a forward pass of the composed student returns."""

from __future__ import annotations

from dataclasses import dataclass

from jaxtyping import Float, Int64
from torch import Tensor
from transformers import Cache
from transformers.utils import ModelOutput

from cocomix.base.labels import IGNORED_LABEL
from cocomix.mixers.base import MixerOutput

# Shapes: B batch, T tokens, S positions above the mixer, D width, V vocabulary, K active concepts.


@dataclass
class CoCoMixOutput(ModelOutput):
    """What a forward pass returns. Losses are means over valid targets; sums and counts stand beside them."""

    loss: Float[Tensor, ""] | None = None
    """lm_loss + concept_loss_weight * concept_loss, as far as labels were given."""
    logits: Float[Tensor, "B T V"] | None = None
    """None in training with labels, unless asked for."""
    past_key_values: Cache | None = None
    lm_loss: Float[Tensor, ""] | None = None
    concept_loss: Float[Tensor, ""] | None = None
    lm_loss_sum: Float[Tensor, ""] | None = None
    lm_count: Int64[Tensor, ""] | None = None
    concept_loss_sum: Float[Tensor, ""] | None = None
    concept_count: Int64[Tensor, ""] | None = None
    concept_indices: Int64[Tensor, "B T K"] | None = None
    concept_values: Float[Tensor, "B T K"] | None = None
    hidden_states: tuple[Tensor, ...] | None = None
    """If asked for: the residual stream below the first block and after each, [B, T, D], above the mixer [B, S, D]."""

    def add_next_token_loss(self, loss_sum: Float[Tensor, ""], labels: Int64[Tensor, "B T"]) -> None:
        """Set the next-token loss, and with it `loss`.

        Args:
            loss_sum: over the labels that are not `IGNORED_LABEL`.
            labels: not shifted yet.
        """
        self.lm_loss_sum, self.lm_count = loss_sum, (labels[:, 1:] != IGNORED_LABEL).sum()
        self.lm_loss = loss_sum / self.lm_count.clamp(min=1)
        self.loss = self.lm_loss

    def add_concepts(self, mixed: MixerOutput, weight: float) -> None:
        """Set what the mixer said; its loss, if there is one, joins `loss` with a weight."""
        self.concept_indices, self.concept_values = mixed.concept_indices, mixed.concept_values
        if mixed.concept_loss_sum is None or mixed.concept_count is None:
            return
        self.concept_loss_sum, self.concept_count = mixed.concept_loss_sum, mixed.concept_count
        self.concept_loss = mixed.concept_loss_sum / mixed.concept_count.clamp(min=1)
        weighted = weight * self.concept_loss
        self.loss = weighted if self.loss is None else self.loss + weighted
