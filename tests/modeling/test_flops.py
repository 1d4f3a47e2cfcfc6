"""The algorithmic count equals torch's own counter where both count the same: matrix products with full attention."""

from __future__ import annotations

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from cocomix.modeling import flops
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
    # Masks leave out what eager attention computes, and the counter does not see the gathered compression.
    monkeypatch.setattr(flops, "mean_keys", lambda num_positions, *_: num_positions)
    compress = 2 * 5 * 16 if mixer == "concept" else 0
    assert flops.forward_flops_per_token(model, T) * T == counter.get_total_flops() + compress * T


@pytest.mark.parametrize(("window", "rate"), [(None, 1), (4, 1), (4, 2), (100, 1)])
def test_mean_keys_are_those_a_mask_leaves(window: int | None, rate: int) -> None:
    T = 9
    visible = [min(t + 1, rate * window if window else T) for t in range(T)]
    assert flops.mean_keys(T, window, rate) == pytest.approx(sum(visible) / T)
