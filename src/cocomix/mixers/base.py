"""The `Mixer` seam: what stands between two blocks of the decoder.

A mixer turns hidden states [B, T, D] into the sequence that the upper blocks see, and says what it predicted on the way. All
that can be said of it without weights is in its `Config` (`mixers/config.py`).
"""

from __future__ import annotations

import abc
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol, runtime_checkable

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn

from cocomix.base.errors import CocomixError
from cocomix.mixers.config import MixerConfig
from cocomix.mixers.edits import ConceptEdit
from cocomix.mixers.linear_head import LOGITS_MEGABYTES
from cocomix.mixers.metrics import MixerMetrics

# Shapes: B batch, T tokens, S positions above the mixer, D width, C concepts, K active concepts, A labels a token.


@dataclass(frozen=True)
class MixerInputs:
    """What a mixer may read beside the hidden states."""

    concept_labels: Int64[Tensor, "B T A"] | None = None
    """Concepts to learn, `IGNORED_LABEL` where there are none."""
    edits: tuple[ConceptEdit, ...] = ()
    """Edits of the concept stream, in order."""


@dataclass(frozen=True)
class MixerOutput:
    """What a mixer made of the hidden states; what is said of concepts is None without any."""

    hidden: Float[Tensor, "B S D"]
    concept_indices: Int64[Tensor, "B T K"] | None = None
    concept_values: Float[Tensor, "B T K"] | None = None
    concept_loss_sum: Float[Tensor, ""] | None = None
    concept_count: Int64[Tensor, ""] | None = None


@runtime_checkable
class AutoencoderWeights(Protocol):
    """The tensors of a sparse autoencoder, both matrices with one row a latent, and its settings."""

    config: Any
    encoder_weight: nn.Parameter
    encoder_bias: nn.Parameter
    decoder_weight: nn.Parameter
    decoder_bias: nn.Parameter


class Mixer(nn.Module, abc.ABC):
    """Something inserted into the decoder.

    Args:
        config: its settings.
        hidden_size: width D of the decoder.
    """

    Config: ClassVar[type[MixerConfig]]

    def __init__(self, config: MixerConfig, hidden_size: int) -> None:
        super().__init__()
        self.config = config
        self.logits_megabytes = LOGITS_MEGABYTES
        """Memory of a chunk of logits, if it has any; see `CoCoMixForCausalLM.limit_logits`."""

    @abc.abstractmethod
    def forward(self, hidden: Float[Tensor, "B T D"], inputs: MixerInputs) -> MixerOutput:
        """Mix.

        Args:
            hidden: residual stream after block `layer`.
            inputs: labels and edits.
        """

    def reset_parameters(self, std: float) -> None:
        """Draw the initial weights from N(0, std)."""

    def zero_init(self) -> None:
        """Make the inserted vector start at zero, for a backbone that is trained already."""

    def start_from_autoencoder(self, sae: AutoencoderWeights) -> None:
        """Start as a sparse autoencoder of the residual stream here.

        Raises:
            CocomixError: the mixer has no such form, or the autoencoder another shape or formula.
        """
        raise CocomixError(f"an autoencoder can't start a mixer {self.config.mixer!r}; use mixer 'concept'")

    def counts(self, output: Any, concept_labels: Int64[Tensor, "B T A"] | None) -> dict[str, Tensor]:
        """What one forward pass adds to the metrics: integers without a graph, from the model's output."""
        return {}

    def metrics(self, num_tokens: int, *, has_labels: bool, device: torch.device | str = "cpu") -> MixerMetrics:
        """What is written down about the mixer along a run of `num_tokens` tokens."""
        return MixerMetrics()
