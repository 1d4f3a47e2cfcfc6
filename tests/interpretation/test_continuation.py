"""Steered continuations from a tiny pipeline."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import torch

from cocomix import AttributionConfig, CoCoMixForCausalLM, TokenDataset, TrainConfig, train
from cocomix.concepts.extraction import load_extractor
from cocomix.interpretation.continuation import most_steerable, strongest_activations
from cocomix.modeling.loading import load_causal_lm
from tests.conftest import STUDENT, Tiny


def test_a_steered_continuation_names_concept_and_strength(tiny: Tiny, tmp_path: Path) -> None:
    concept = dataclasses.replace(STUDENT, mixer="concept")
    train(TrainConfig(data=tiny.data, output=tmp_path, labels=tiny.concepts, student=concept, num_tokens=4096))
    model, data = load_causal_lm(tmp_path), TokenDataset(tiny.data, "validation")
    assert isinstance(model, CoCoMixForCausalLM)
    extractor = load_extractor(tiny.teacher, tiny.sae, AttributionConfig())
    usual = strongest_activations(model, data, 8)
    active = usual.topk(3).indices.tolist()
    steered = most_steerable(
        model, extractor.teacher, extractor.sae, data, active, num_prompt_tokens=6, num_new_tokens=8, max_windows=8
    )
    assert steered is not None
    assert steered.concept in active
    assert steered.strength == 2 * float(usual[steered.concept])
    never = [int(concept) for concept in (usual == -torch.inf).nonzero()]
    assert most_steerable(model, extractor.teacher, extractor.sae, data, never, max_windows=8) is None
