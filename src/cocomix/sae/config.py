"""What a dictionary computes with its weights.

Three settings of other formats are missing on purpose, because their readers fold them into the weights, exactly: a factor
on the input, a factor on each latent, and a selection by activation times decoder norm.
"""

from __future__ import annotations

import reprlib
from dataclasses import dataclass

from cocomix.base.errors import CocomixError

ACTIVATIONS = ("topk", "abstopk", "groupmax", "batchtopk", "relu", "jumprelu")
INPUT_NORMALIZATIONS = ("none", "layer_norm", "constant_norm_rescale")
#: Largest size of a dimension that a file can ask for.
MAX_SIZE = 2**31 - 1


@dataclass(frozen=True)
class SparseAutoencoderConfig:
    """Shape, input normalisation and activation of a dictionary."""

    hidden_size: int
    """D, width of the teacher's residual stream."""
    num_latents: int
    """C, size of the dictionary."""
    num_active_latents: int | None = None
    """K: latents kept for a token (`topk`, `abstopk`, `groupmax`) or on average (`batchtopk`); None where only thresholds
    decide."""
    normalize_input: str = "layer_norm"
    """Take each token's mean and scale (`layer_norm`), or its norm over sqrt(D), from it before encoding, and put them
    back after decoding."""
    activation: str = "topk"
    """The K largest pre-activations (`topk`), the largest of each of K equal groups (`groupmax`), all above one stored
    threshold (`batchtopk`), above zero (`relu`), or above a threshold each (`jumprelu`), all followed by a ReLU; or the K of
    the largest size with their signs (`abstopk`)."""
    subtract_decoder_bias: bool = True
    """Subtract the decoder's bias from the normalised input before encoding."""
    skip_connection: bool = False
    """Add a linear map of the input to the reconstruction."""
    transcode: bool = False
    """The decoder predicts the output of the module whose input the encoder reads, not that input."""

    def __post_init__(self) -> None:
        for name, choices in (("activation", ACTIVATIONS), ("normalize_input", INPUT_NORMALIZATIONS)):
            if getattr(self, name) not in choices:
                raise CocomixError(f"{name} is {reprlib.repr(getattr(self, name))}; choose one of {', '.join(choices)}")
        for name in ("hidden_size", "num_latents", "num_active_latents"):
            size = getattr(self, name)
            if size is not None and not 1 <= size <= MAX_SIZE:
                # Not the number itself, which can have any length.
                raise CocomixError(
                    f"{name} is {'below 1' if size < 1 else f'above {MAX_SIZE}'}; no dictionary has that"
                )
        K, C = self.num_active_latents, self.num_latents
        if self.activation in ("relu", "jumprelu"):
            if K is not None:
                raise CocomixError(f"num_active_latents is {K}; activation {self.activation!r} has no fixed number")
        elif K is None or not 1 <= K <= C:
            raise CocomixError(f"num_active_latents is {K}; it must lie between 1 and num_latents ({C})")
        elif self.activation == "groupmax" and C % K:
            raise CocomixError(f"activation 'groupmax' needs num_latents ({C}) divisible by num_active_latents ({K})")

    @property
    def max_active_latents(self) -> int:
        """The most latents that can be active at one token."""
        if self.activation in ("topk", "abstopk", "groupmax") and self.num_active_latents is not None:
            return self.num_active_latents
        return self.num_latents
