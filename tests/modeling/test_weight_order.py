"""Weights in another order compute, are tied and are saved as before."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from cocomix.modeling import weight_order
from cocomix.modeling.loading import load_causal_lm
from tests.modeling.helpers import student, tokens


@pytest.fixture(autouse=True)
def small_weights_count(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(weight_order, "MIN_ELEMENTS", 1)


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_only_the_order_in_memory_changes(family: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    model, ids = student(family, "concept", "interleave"), tokens(2, 6)
    before, expected = {name: tensor.clone() for name, tensor in model.state_dict().items()}, model(ids).logits
    # Columns side by side are twice as fast.
    monkeypatch.setattr(weight_order, "_seconds", lambda weight: 2.0 if weight.stride(1) == 1 else 1.0)
    weight_order.order_for_single_tokens(model)
    changed = {name for name, parameter in model.named_parameters() if not parameter.is_contiguous()}
    blocks = {name for name in changed if name.startswith("backbone") and "weight" in name}
    # GPT-2 keeps weights as [in, out], others as [out, in], whose columns lie side by side for a product.
    assert bool(blocks) is (family == "gpt2")
    assert "mixer.compress_weight" not in changed
    assert {name: tensor.shape for name, tensor in model.state_dict().items()} == {
        name: tensor.shape for name, tensor in before.items()
    }
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert model.get_input_embeddings().weight is model.get_output_embeddings().weight
    torch.testing.assert_close(model(ids).logits, expected)

    model.save_pretrained(tmp_path)
    loaded = load_causal_lm(tmp_path).state_dict()
    assert all(torch.equal(tensor, before[name]) and tensor.is_contiguous() for name, tensor in loaded.items())


def test_the_other_order_must_be_clearly_faster(monkeypatch: pytest.MonkeyPatch) -> None:
    model = student("gpt2", "concept", "interleave")
    monkeypatch.setattr(weight_order, "_seconds", lambda weight: 1.2 if weight.stride(1) == 1 else 1.0)
    weight_order.order_for_single_tokens(model)
    assert all(parameter.is_contiguous() for parameter in model.parameters())
