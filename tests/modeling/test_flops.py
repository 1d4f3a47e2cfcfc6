"""The algorithmic count equals torch's own counter where both count the same: matrix products with full attention."""

from __future__ import annotations

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from cocomix.modeling import flops
from cocomix.modeling.backbones import DecoderAdapter
from tests.modeling.helpers import FAMILIES, MIXERS, student, tokens


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize(("mixer", "mixing"), MIXERS)
def test_forward_count_equals_torchs_counter(
    family: str, mixer: str, mixing: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, T = student(family, mixer, mixing), 8
    model.set_attn_implementation("eager")  # the counter sees eager attention as its two products, over all keys
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(input_ids=tokens(1, T))
    # Causal attention halves what eager attention computes, and the counter does not see the gathered compression.
    causal = flops.attention_flops_per_token

    def full(adapter: DecoderAdapter, start: int, stop: int, num_positions: int) -> float:
        return causal(adapter, start, stop, 2 * num_positions - 1)

    monkeypatch.setattr(flops, "attention_flops_per_token", full)
    compress = 2 * 5 * 16 if mixer == "concept" else 0
    assert flops.forward_flops_per_token(model, T) * T == counter.get_total_flops() + compress * T
