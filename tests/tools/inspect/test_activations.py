"""Statistics of active concepts, against a count by hand."""

from __future__ import annotations

import pytest
import torch

from cocomix import CoCoMixConfig, CocomixError, CoCoMixForCausalLM, TokenDataset
from cocomix.steering.activations import concept_activations
from tests.conftest import Tiny
from tests.modeling.helpers import NUM_CONCEPTS, backbone_config, student


def reader_of(data: TokenDataset) -> CoCoMixForCausalLM:
    backbone = backbone_config("llama", vocab_size=data.vocab_size)
    settings = {"num_concepts": NUM_CONCEPTS, "num_active_concepts": 5, "initializer_range": 0.5}
    return CoCoMixForCausalLM(CoCoMixConfig(backbone_config=backbone, **settings)).eval()


def test_statistics_equal_a_count_by_hand(tiny: Tiny) -> None:
    data = TokenDataset(tiny.data, "validation")
    model = reader_of(data)
    found = concept_activations(model, data, 20)
    (windows,) = data.batches(20, 20)
    with torch.no_grad():
        output = model(input_ids=windows.input_ids)
    num_tokens = windows.input_ids.numel()
    assert found.num_tokens == num_tokens
    mean_abs = []
    for concept in range(NUM_CONCEPTS):
        values = output.concept_values[output.concept_indices == concept]
        assert float(found.activation_rate[concept]) == pytest.approx(len(values) / num_tokens)
        if not len(values):
            continue
        mean_abs.append(float(values.abs().mean()))
        for name, expected in (
            ("mean", values.mean()),
            ("std", values.std(correction=0)),
            ("largest", values.max()),
            ("mean_abs", values.abs().mean()),
        ):
            assert float(getattr(found, name)[concept]) == pytest.approx(float(expected), rel=1e-4, abs=1e-5), name


def test_concepts_that_were_never_active_take_the_median_unit(tiny: Tiny) -> None:
    data = TokenDataset(tiny.data, "validation")
    model = reader_of(data)
    with torch.no_grad():
        model.mixer.head_bias[3] = -1e6
        model.mixer.head_bias[4] = -1e6
    found = concept_activations(model, data, 4)
    assert found.activation_rate[3] == found.mean[3] == found.largest[3] == 0
    assert found.mean_abs[3] == found.mean_abs[4] == found.mean_abs[found.activation_rate > 0].median()


def test_a_model_without_concepts_is_refused(tiny: Tiny) -> None:
    with pytest.raises(CocomixError, match="'pause'"):
        concept_activations(student(mixer="pause"), TokenDataset(tiny.data, "validation"))
