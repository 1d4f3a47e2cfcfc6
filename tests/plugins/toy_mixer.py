"""A mixer of someone else's, with weights, costs and settings of its own: h + (h A) B, of low rank."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from cocomix import Mixer, register_mixer
from cocomix.mixers.base import MixerInputs, MixerOutput
from cocomix.mixers.config import Count, InsertedConfig
from cocomix.mixers.mixing import MIXINGS


@dataclass(frozen=True)
class LowRankConfig(InsertedConfig):
    """A linear map of low rank, added."""

    mixer: str = "low_rank"
    mixing: str = "add"
    rank: int = 2
    """Of the map."""

    def num_active_parameters(self, hidden_size: int) -> int:
        return 2 * self.rank * hidden_size

    def forward_flops(self, hidden_size: int, count: Count) -> float:
        return 4.0 * self.rank * hidden_size


@register_mixer
class LowRankMixer(Mixer):
    """Brings a map of the hidden states in, as `mixing` says."""

    Config: ClassVar[Any] = LowRankConfig

    def __init__(self, config: LowRankConfig, hidden_size: int) -> None:
        super().__init__(config, hidden_size)
        self.mixing = MIXINGS[config.mixing]
        self.down = nn.Parameter(torch.empty(hidden_size, config.rank))
        self.up = nn.Parameter(torch.empty(config.rank, hidden_size))

    def reset_parameters(self, std: float) -> None:
        nn.init.normal_(self.down, std=std)
        nn.init.normal_(self.up, std=std)

    def forward(self, hidden: Tensor, inputs: MixerInputs) -> MixerOutput:
        return MixerOutput(self.mixing.combine(hidden, hidden @ self.down @ self.up))
