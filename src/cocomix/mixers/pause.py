"""One learned vector in place of every concept vector: the baseline with extra computation but no concepts."""

from __future__ import annotations

from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor, nn

from cocomix.mixers.base import Mixer, MixerInputs, MixerOutput
from cocomix.mixers.config import MixerConfig, PauseConfig
from cocomix.mixers.mixing import MIXINGS


class PauseMixer(Mixer):
    """Mixes in the same learned vector at every token."""

    Config: ClassVar[type[MixerConfig]] = PauseConfig

    def __init__(self, config: PauseConfig, hidden_size: int) -> None:
        super().__init__(config, hidden_size)
        self.mixing = MIXINGS[config.mixing]
        self.pause = nn.Parameter(torch.empty(hidden_size))

    def reset_parameters(self, std: float) -> None:
        nn.init.normal_(self.pause, std=std)

    def zero_init(self) -> None:
        nn.init.zeros_(self.pause)

    def forward(self, hidden: Float[Tensor, "B T D"], inputs: MixerInputs) -> MixerOutput:
        return MixerOutput(self.mixing.combine(hidden, self.pause.expand_as(hidden)))
