"""The plain decoder: nothing is inserted."""

from __future__ import annotations

from typing import ClassVar

from jaxtyping import Float
from torch import Tensor

from cocomix.mixers.base import Mixer, MixerInputs, MixerOutput
from cocomix.mixers.config import MixerConfig, NoMixerConfig


class NoMixer(Mixer):
    """Passes the hidden states through unchanged."""

    Config: ClassVar[type[MixerConfig]] = NoMixerConfig

    def forward(self, hidden: Float[Tensor, "B T D"], inputs: MixerInputs) -> MixerOutput:
        return MixerOutput(hidden)
