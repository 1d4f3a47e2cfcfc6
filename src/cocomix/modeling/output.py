"""The output of the composed student's forward pass."""

from __future__ import annotations

from dataclasses import dataclass

from jaxtyping import Float, Int64
from torch import Tensor
from transformers import Cache
from transformers.utils import ModelOutput

from cocomix.mixers.base import MixerOutput
from cocomix.modeling.losses import combined_loss

# Shapes: B batch, T tokens, S positions above the mixer, D width, V vocabulary, K active concepts.


@dataclass
class CoCoMixOutput(ModelOutput):
    """Output of a forward pass. Losses are means over valid targets, in nats, with their sums and counts."""

    loss: Float[Tensor, ""] | None = None
    """lm_loss + concept_loss_weight * concept_loss, including only terms with labels."""
    logits: Float[Tensor, "B T V"] | None = None
    """Logits; None in training with labels, unless requested."""
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
    """If requested: the residual stream before the first block and after each one, [B, T, D], above the mixer [B, S, D]."""

    def set_concepts(self, mixed: MixerOutput) -> None:
        """Copy the mixer's concepts, concept loss and count."""
        self.concept_indices, self.concept_values = mixed.concept_indices, mixed.concept_values
        self.concept_loss_sum, self.concept_count = mixed.concept_loss_sum, mixed.concept_count

    def set_loss(self, concept_loss_weight: float) -> None:
        """Set the mean losses and `loss` from the sums and counts that are set."""
        terms = []
        if self.lm_loss_sum is not None and self.lm_count is not None:
            terms.append((1.0, self.lm_loss_sum, self.lm_count.clamp(min=1)))
        if self.concept_loss_sum is not None and self.concept_count is not None:
            terms.append((concept_loss_weight, self.concept_loss_sum, self.concept_count.clamp(min=1)))
        if not terms:
            return
        self.loss, means = combined_loss(terms)
        if self.concept_loss_sum is not None:
            self.concept_loss = means.pop()
        if means:
            self.lm_loss = means[0]
