"""The vocabulary loss in chunks is that of all logits, forward and every gradient."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from cocomix import CocomixError
from cocomix.mixers import linear_head
from cocomix.modeling.losses import has_plain_head
from cocomix.modeling.model import CoCoMixForCausalLM
from tests.modeling.helpers import FAMILIES, VOCAB_SIZE, concept_labels, student, tokens


def loss_and_gradients(model: CoCoMixForCausalLM, *, return_logits: bool) -> tuple[torch.Tensor, list[torch.Tensor]]:
    ids = tokens(2, 9)
    labels = ids.clone()
    labels[0, 3], labels[1, 5:] = -100, -100
    output = model(input_ids=ids, labels=labels, return_logits=return_logits)
    assert (output.logits is not None) == return_logits
    assert int(output.lm_count) == 16 - 1 - 4
    return output.lm_loss_sum, list(torch.autograd.grad(output.lm_loss_sum, list(model.backbone.parameters())))


@pytest.mark.parametrize("family", FAMILIES)
def test_chunked_loss_equals_that_of_all_logits(family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(linear_head, "_MEGABYTE", 5 * 8 * VOCAB_SIZE)  # five rows a chunk, in float64
    model = student(family).double().train()
    model.limit_logits(1)
    assert has_plain_head(model.adapter) == (not family.startswith("gemma"))
    torch.manual_seed(0)
    chunked = loss_and_gradients(model, return_logits=False)
    torch.manual_seed(0)
    plain = loss_and_gradients(model, return_logits=True)
    # float64: only the order of summation differs; some backbones compute a norm in float32.
    torch.testing.assert_close(chunked, plain, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.int32, torch.int16])
@pytest.mark.parametrize("is_training", [True, False])
def test_labels_of_shorter_integers(dtype: torch.dtype, is_training: bool) -> None:
    model, ids = student().train(is_training), tokens(2, 9)
    concepts = concept_labels(2, 9)
    expected = model(input_ids=ids, labels=ids, concept_labels=concepts).loss
    assert torch.equal(model(input_ids=ids, labels=ids.to(dtype), concept_labels=concepts.to(dtype)).loss, expected)


def test_another_head_than_a_linear_layer_goes_the_plain_way() -> None:
    class Halved(nn.Linear):
        def forward(self, hidden: torch.Tensor) -> torch.Tensor:
            return super().forward(hidden) / 2

    model = student("llama").train()
    head = Halved(16, VOCAB_SIZE, bias=False)
    head.weight = model.get_output_embeddings().weight
    model.set_output_embeddings(head)
    assert not has_plain_head(model.adapter)
    ids = tokens()
    expected = model(input_ids=ids, labels=ids, return_logits=True).lm_loss
    assert torch.equal(model(input_ids=ids, labels=ids).lm_loss, expected)


def test_a_frozen_head_gets_no_gradient() -> None:
    model, ids = student("llama").train(), tokens()
    head = model.get_output_embeddings()
    head.weight.requires_grad_(False)
    model(input_ids=ids, labels=ids).loss.backward()
    assert head.weight.grad is None
    assert model.mixer.head_weight.grad is not None


def test_a_chunk_of_nothing_is_refused() -> None:
    with pytest.raises(CocomixError, match=r"0.*1"):
        student("llama").limit_logits(0)
