"""Both counts: the counter's equals torch's own on the meta device, the algorithmic one differs by what a mask leaves out."""

from __future__ import annotations

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from cocomix.mixers.layout import Layout
from cocomix.modeling import flops
from cocomix.modeling.backbones import DecoderAdapter
from cocomix.training.recipes import find_recipe
from cocomix.training.widths import meta_model
from tests.modeling.helpers import FAMILIES, MIXERS, student, tokens

#: Every family with the published mixing, every mixing with one family, and mixing alone.
CASES = [
    *((family, "concept", "interleave", 0.1) for family in FAMILIES),
    *(("gpt2", mixer, mixing, 0.1) for mixer, mixing in MIXERS),
    *(("llama", "concept", mixing, 0.0) for mixing in ("interleave", "add", "none")),
]
APPROXIMATE = [{"concept_stride": 2}, {"concept_stride": 3}]


@pytest.mark.parametrize(
    ("family", "mixer", "mixing", "weight", "more"),
    [
        # Every second family is slow: the products of a family are those of its adapter.
        *(
            pytest.param(*case, {}, marks=pytest.mark.slow if case in CASES[1 : len(FAMILIES) : 2] else ())
            for case in CASES
        ),
        *(("gemma2", "concept", "interleave", 0.1, more) for more in APPROXIMATE),
    ],
)
def test_the_count_equals_torchs_counter_on_the_meta_device(
    family: str, mixer: str, mixing: str, weight: float, more: dict[str, int]
) -> None:
    T = 8
    with torch.device("meta"):
        model = student(family, mixer, mixing, concept_loss_weight=weight, **more).train()
        ids = tokens(1, T)
        concepts = torch.zeros(1, T, 4, dtype=torch.long) if mixer == "concept" and weight else None
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(input_ids=ids, labels=ids, concept_labels=concepts)
    assert flops.forward_flops_per_token(model, T, "counter") * T == counter.get_total_flops()
    with FlopCounterMode(display=False) as counter:  # heads with a loss do much of their backward on the way forward
        model(input_ids=ids, labels=ids, concept_labels=concepts).loss.backward()
    assert flops.training_flops_per_token(model, T, "counter") * T == counter.get_total_flops()


@pytest.mark.parametrize("first", [2, 3])
@pytest.mark.parametrize("mixing", ["interleave", "add", "none"])
def test_frozen_weights_and_what_lies_below_them_cost_no_backward(first: int, mixing: str) -> None:
    """Blocks from `first` on learn; the mixer, after block 0, always does."""
    T = 8
    with torch.device("meta"):
        model = student("llama", "concept", mixing).train()
        ids, concepts = tokens(1, T), torch.zeros(1, T, 4, dtype=torch.long)
    model.backbone.requires_grad_(False)
    for block in model.adapter.blocks[first:]:
        block.requires_grad_(True)
    with FlopCounterMode(display=False) as counter:
        model(input_ids=ids, labels=ids, concept_labels=concepts).loss.backward()
    assert flops.training_flops_per_token(model, T, "counter") * T == counter.get_total_flops()


def test_a_recipe_of_the_paper_is_counted_as_torch_does() -> None:
    recipe = find_recipe("gpt2-69m-cocomix")
    model, T = meta_model(recipe.config(), recipe.size), recipe.size.context_length
    ids = torch.zeros(1, T, dtype=torch.long, device="meta")
    concepts = torch.zeros(1, T, 4, dtype=torch.long, device="meta")
    with FlopCounterMode(display=False) as counter:
        model(input_ids=ids, labels=ids, concept_labels=concepts).loss.backward()
    assert flops.training_flops_per_token(model, T, "counter") * T == counter.get_total_flops()


@pytest.mark.parametrize(("mixer", "mixing"), MIXERS)
def test_the_algorithmic_count_is_the_counters_but_for_the_mask(
    mixer: str, mixing: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, T = student("gemma3_text", mixer, mixing), 8
    monkeypatch.setattr(flops, "mean_keys", lambda num_positions, *_: num_positions)
    compress = 2 * 5 * 16 if mixer == "concept" else 0
    assert flops.forward_flops_per_token(model, T) == flops.forward_flops_per_token(model, T, "counter") + compress
    ours, counted = (flops.training_flops_per_token(model, T, count) for count in ("algorithmic", "counter"))
    assert ours == counted + 3 * compress


@pytest.mark.parametrize("window", [None, 4, 100])
@pytest.mark.parametrize("layout", [Layout(), Layout(1), Layout(3)])
def test_mean_keys_are_those_a_mask_leaves(window: int | None, layout: Layout) -> None:
    S = layout.num_positions(9)
    width = S if window is None else layout.num_positions(window)
    visible = []
    for query in range(S):
        visible.append(len(range(max(0, query - width + 1), query + 1)))
    assert flops.mean_keys(S, window, layout) == pytest.approx(sum(visible) / S)
    assert flops.mean_keys(S, window, layout, slice(1, None, 2)) == pytest.approx(
        sum(visible[1::2]) / len(visible[1::2])
    )


def test_an_adapter_that_skips_nothing_is_counted_so(monkeypatch: pytest.MonkeyPatch) -> None:
    model, T = student("llama"), 8
    skipping = flops.forward_flops_per_token(model, T, "counter")
    monkeypatch.setattr(DecoderAdapter, "can_skip", lambda *_: False)
    whole = flops.forward_flops_per_token(model, T, "counter")
    # Queries, output and the gated MLP of 3 matrices, and attention over 2T keys, for one of two positions.
    assert whole - skipping == 2 * (2 * 16 * 16 + 3 * 16 * 32) + 2 * 2 * 16 * 2 * T
