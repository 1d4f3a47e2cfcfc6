"""The `Mixer` seam: what is inserted between two blocks of the decoder.

A mixer turns hidden states [B, T, D] into the sequence that the upper blocks see, and reports the concepts it predicted.
Everything that needs no weights is in its `Config` (`mixers/config.py`).
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
from cocomix.mixers.metrics import MixerMetrics

# Shapes: B batch, T tokens, S positions above the mixer, D width, C concepts, K active concepts, A labels per token.


@dataclass(frozen=True)
class MixerInputs:
    """What a mixer may read besides the hidden states."""

    concept_labels: Int64[Tensor, "B T A"] | None = None
    """Concepts to learn; `IGNORED_LABEL` in place of each that is missing."""
    edits: tuple[ConceptEdit, ...] = ()
    """Edits of the concept stream, in the order in which they apply."""


@dataclass(frozen=True)
class MixerOutput:
    """The result of a mixer; the fields about concepts are None if it has none."""

    hidden: Float[Tensor, "B S D"]
    concept_indices: Int64[Tensor, "B T K"] | None = None
    concept_values: Float[Tensor, "B T K"] | None = None
    concept_loss_sum: Float[Tensor, ""] | None = None
    concept_count: Int64[Tensor, ""] | None = None


@runtime_checkable
class AutoencoderWeights(Protocol):
    """A sparse autoencoder's settings and tensors; both matrices have one row per latent."""

    config: Any
    encoder_weight: nn.Parameter
    encoder_bias: nn.Parameter
    decoder_weight: nn.Parameter
    decoder_bias: nn.Parameter


class Mixer(nn.Module, abc.ABC):
    """A module inserted into the decoder.

    Args:
        config: settings of the mixer.
        hidden_size: width D of the decoder.
    """

    Config: ClassVar[type[MixerConfig]]

    def __init__(self, config: MixerConfig, hidden_size: int) -> None:
        super().__init__()
        self.config = config
        self.logits_megabytes: int | None = None
        """Memory for a chunk of concept logits, if there are any; see `CoCoMixForCausalLM.limit_logits`."""

    @abc.abstractmethod
    def forward(self, hidden: Float[Tensor, "B T D"], inputs: MixerInputs) -> MixerOutput:
        """Turn hidden states into the sequence that the upper blocks see.

        Args:
            hidden: residual stream after block `layer`.
            inputs: labels and edits.
        """

    def reset_parameters(self, std: float) -> None:
        """Draw the initial weights from a normal distribution with standard deviation `std`."""

    def zero_init(self) -> None:
        """Make the inserted vector start at zero, for a backbone that is already trained."""

    def start_from_autoencoder(self, sae: AutoencoderWeights) -> None:
        """Start as a sparse autoencoder of the residual stream after block `layer`.

        Raises:
            CocomixError: the mixer can't take that form, or the autoencoder has another shape or formula.
        """
        raise CocomixError(f"an autoencoder can't start a mixer {self.config.mixer!r}; use mixer 'concept'")

    def linear_weights(self) -> tuple[nn.Parameter, ...]:
        """Weights [out, in] by which every token is multiplied, beside those of `nn.Linear` modules."""
        return ()

    def counts(self, output: Any, concept_labels: Int64[Tensor, "B T A"] | None) -> dict[str, Tensor]:
        """Counters that one forward pass adds to the metrics, from the model's output: int64, without a graph."""
        return {}

    def metrics(self, num_tokens: int, *, has_labels: bool, device: torch.device | str = "cpu") -> MixerMetrics:
        """Metrics of the mixer in a run of `num_tokens` tokens."""
        return MixerMetrics()
