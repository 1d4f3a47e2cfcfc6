"""Steered continuations from a tiny pipeline."""

from __future__ import annotations

from pathlib import Path

import torch

from cocomix import AttributionConfig, CoCoMixForCausalLM, TokenDataset
from cocomix.labels.live import load_extractor
from cocomix.steering.directions import concept_directions
from cocomix.tools.report.steering_example import STRENGTHS, most_steerable
from tests.conftest import Tiny


def test_a_steered_continuation_names_concept_and_strength(tiny: Tiny, student: Path) -> None:
    model, data = CoCoMixForCausalLM.from_pretrained(student).eval(), TokenDataset(tiny.data, "validation")
    with torch.no_grad():
        model.mixer.head_bias[3] = -1e6
    extractor = load_extractor(tiny.teacher, tiny.sae, AttributionConfig())
    known = concept_directions(model, data, 8).any(-1)
    candidates = [int(concept) for concept in known.nonzero()[:4]]
    sizes = {
        "num_prompt_tokens": 6,
        "num_new_tokens": 8,
        "max_windows": 8,
        "min_ratio": 0.0,
        "min_errors": -1e6,
        "max_loss": 1e6,
    }
    steered = most_steerable(model, extractor.teacher, extractor.sae, data, candidates, **sizes)
    assert steered is not None
    assert steered.concept in candidates
    assert steered.strength in STRENGTHS
    assert len(steered.examples) == 3
    for example in steered.examples:
        text = "".join(part for part, _ in example["steered"])
        assert (text != example["original"]) == any(differs for _, differs in example["steered"])
    assert steered.steered_activation > steered.original_activation
    never = sizes | {"min_errors": 1e6}
    assert most_steerable(model, extractor.teacher, extractor.sae, data, candidates, **never) is None
    assert most_steerable(model, extractor.teacher, extractor.sae, data, [3], **sizes) is None
