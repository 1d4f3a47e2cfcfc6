"""The last block runs where the next token is read: logits, every gradient and caches equal those of the whole block."""

from __future__ import annotations

import itertools
from typing import Any, ClassVar

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from transformers import DynamicCache

from cocomix.modeling import backbones
from cocomix.modeling.backbones import DecoderAdapter, LlamaAdapter, supported_families
from cocomix.modeling.model import CoCoMixForCausalLM
from tests.modeling.helpers import FAMILIES, concept_labels, every_family_with, student, tokens

MIXINGS = ("interleave", "interleave_residual")
#: In float64 equal but for the order of sums; norms of some families compute in float32 all the same.
TOLERANCE = {"rtol": 1e-5, "atol": 1e-8}


@pytest.fixture
def whole(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Run a function with the whole last block."""

    def run(function: Any) -> Any:
        with monkeypatch.context() as patched:
            patched.setattr(DecoderAdapter, "can_skip", lambda *_: False)
            return function()

    return run


def rows_of_the_last_mlp(model: CoCoMixForCausalLM) -> list[int]:
    """How many positions each call of the last block's MLP sees, from now on."""
    seen: list[int] = []
    model.adapter.blocks[-1].mlp.register_forward_hook(lambda _, inputs, __: seen.append(inputs[0].shape[1]))
    return seen


def step(model: CoCoMixForCausalLM, **inputs: Any) -> list[torch.Tensor]:
    """Logits, loss and every gradient."""
    output = model(return_logits=True, **inputs)
    names, parameters = zip(*model.named_parameters(), strict=True)
    assert names
    return [output.logits, output.loss, *torch.autograd.grad(output.loss, parameters)]


@pytest.mark.parametrize(("family", "mixing", "layer"), every_family_with(list(itertools.product(MIXINGS, (0, 1)))))
def test_logits_and_gradients_equal_those_of_the_whole_block(family: str, mixing: str, layer: int, whole: Any) -> None:
    model, T = student(family, mixing=mixing, layer=layer).double().train(), 7
    tolerance = TOLERANCE
    if family == "gemma2":  # its softmax is in float32, where what a mask adds in float64 is infinite
        model, tolerance = model.float(), {"rtol": 1e-4, "atol": 1e-5}
    ids = tokens(2, T)
    padding, packed = torch.ones_like(ids), torch.cat([torch.arange(3), torch.arange(4)]).expand(2, -1)
    padding[0, :2] = 0
    given = {"input_ids": ids, "labels": ids, "concept_labels": concept_labels(2, T)}
    seen = rows_of_the_last_mlp(model)
    for more in ({}, {"attention_mask": padding}, {"position_ids": packed}):
        skipped, expected = step(model, **given, **more), whole(lambda more=more: step(model, **given, **more))
        torch.testing.assert_close(skipped, expected, **tolerance)
    assert seen == 3 * [T, 2 * T]


@pytest.mark.parametrize("mixing", ["add", "interleave"])
def test_no_other_block_asks_for_a_mask(mixing: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A mask rules out flash kernels."""
    masked, attend = [], F.scaled_dot_product_attention

    def noted(*arguments: Any, **options: Any) -> torch.Tensor:
        masked.append(options["attn_mask"] is not None)
        return attend(*arguments, **options)

    monkeypatch.setattr(F, "scaled_dot_product_attention", noted)
    model, ids = student("llama", mixing=mixing).train(), tokens(2, 7)
    model(input_ids=ids, labels=ids, concept_labels=concept_labels(2, 7))
    assert masked == [False] * (model.adapter.num_blocks - 1) + [mixing == "interleave"]


@pytest.mark.parametrize("family", FAMILIES)
def test_caches_hold_what_the_whole_block_leaves(family: str, whole: Any) -> None:
    model, ids = student(family).double(), tokens(2, 8)

    @torch.no_grad()
    def run() -> list[torch.Tensor]:
        cache, parts = DynamicCache(config=model.config), []
        for chunk in ids.split([5, 1, 2], dim=1):
            parts.append(model(input_ids=chunk, past_key_values=cache).logits)
        last = cache.layers[-1]
        return [*parts, last.keys, last.values]

    seen = rows_of_the_last_mlp(model)
    torch.testing.assert_close(run(), whole(run), **TOLERANCE)
    assert seen == [5, 1, 2, 10, 2, 4]


@pytest.mark.parametrize("family", FAMILIES)
def test_fused_and_adapted_projections_are_called(family: str, whole: Any) -> None:
    """A projection that is no plain one, as adapters of low rank put in its place, takes part."""

    class Adapted(nn.Module):
        def __init__(self, plain: nn.Module) -> None:
            super().__init__()
            self.plain = plain

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return 2 * self.plain(x) + 1

    model, ids = student(family).double(), tokens(1, 5)
    block = model.adapter.blocks[-1]
    for module in list(block.modules()):
        for name, part in list(module.named_children()):
            if name in ("c_attn", "query_key_value", "k_proj", "v_proj"):
                setattr(module, name, Adapted(part))
    torch.testing.assert_close(model(ids).logits, whole(lambda: model(ids).logits), **TOLERANCE)


@pytest.mark.parametrize("family", ["gpt2", "gemma3_text"])
def test_checkpointed_blocks_skip_too(family: str) -> None:
    model = student(family).train()
    ids = tokens()
    given = {"input_ids": ids, "labels": ids, "concept_labels": concept_labels()}
    plain = step(model, **given)
    seen = rows_of_the_last_mlp(model)
    model.gradient_checkpointing_enable({"use_reentrant": False})
    assert all(torch.equal(*pair) for pair in zip(step(model, **given), plain, strict=True))
    assert set(seen) == {9}
    seen.clear()
    # Re-entrant checkpoints follow no tensor inside of other arguments: the whole block runs.
    model.gradient_checkpointing_enable({"use_reentrant": True})
    model(**given).loss.backward()
    for parameter, expected in zip(model.parameters(), plain[2:], strict=True):
        torch.testing.assert_close(parameter.grad, expected, rtol=1e-4, atol=1e-6)
    # With a cache, which a recomputed block would extend twice, likewise.
    model.gradient_checkpointing_enable({"use_reentrant": False})
    model(input_ids=ids, use_cache=True)
    assert set(seen) == {18}
    assert "_can_checkpoint_with_cache" not in vars(model.adapter.blocks[-1])


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_attention_kernels(attention: str, whole: Any) -> None:
    model, ids = student("mistral").double(), tokens()
    model.set_attn_implementation(attention)
    seen = rows_of_the_last_mlp(model)
    torch.testing.assert_close(model(ids).logits, whole(lambda: model(ids).logits), **TOLERANCE)
    assert seen == [9, 18]


def test_hidden_states_are_of_all_positions() -> None:
    model, ids = student("llama"), tokens()
    seen = rows_of_the_last_mlp(model)
    states = model(ids, output_hidden_states=True).hidden_states
    assert states[-1].shape[1] == 18
    assert seen == [18]


def test_an_adapter_that_does_not_say_how_keys_are_made_runs_the_whole_block(monkeypatch: pytest.MonkeyPatch) -> None:
    class OtherAdapter(DecoderAdapter):
        families: ClassVar = {"llama": "a family of one's own"}

    assert all(
        adapter.keys_and_values is not DecoderAdapter.keys_and_values for adapter in supported_families().values()
    )
    model, ids = student("llama"), tokens()
    expected = model(ids).logits
    monkeypatch.setitem(backbones._ADAPTERS, "llama", OtherAdapter)
    seen = rows_of_the_last_mlp(model)
    torch.testing.assert_close(model(ids).logits, expected, rtol=1e-4, atol=1e-5)
    assert seen == [18]
    assert LlamaAdapter(model.backbone).knows_keys
