"""Concept cards and steered continuations from a tiny pipeline."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import torch

from cocomix import AttributionConfig, CoCoMixForCausalLM, ConceptDataset, TokenDataset, TrainConfig, train
from cocomix.concepts.extraction import load_extractor
from cocomix.interpretation.contexts import label_counts, most_used_concepts
from cocomix.interpretation.continuation import most_steerable, strongest_activations
from cocomix.modeling.loading import load_causal_lm
from tests.conftest import STUDENT, Tiny


def test_counts_are_of_all_labels(tiny: Tiny) -> None:
    concepts = ConceptDataset(tiny.concepts, TokenDataset(tiny.data))
    labels = concepts.labels(range(concepts.num_windows))
    counts = label_counts(concepts)
    assert int(counts.sum()) == int((labels >= 0).sum())
    assert int(counts[3]) == int((labels == 3).sum())


def test_cards_show_the_strongest_tokens_of_the_most_used_concepts(tiny: Tiny) -> None:
    concepts, data = ConceptDataset(tiny.concepts, TokenDataset(tiny.data)), TokenDataset(tiny.data, "validation")
    extractor = load_extractor(tiny.teacher, tiny.sae, AttributionConfig())
    cards = most_used_concepts(concepts, extractor.teacher, extractor.sae, data, num_concepts=4, num_contexts=3)
    shares = [card.label_share for card in cards]
    assert shares == sorted(shares, reverse=True)

    latents = extractor.sae.encode(extractor.teacher.residual(data.input_ids(range(data.num_windows))))
    for card in cards:
        activations = (latents.values * (latents.indices == card.concept)).sum(-1).amax(-1)
        expected = activations.topk(3).values.tolist()
        # Another batch size: equal to rounding.
        torch.testing.assert_close([context.activation for context in card.contexts], expected, rtol=1e-4, atol=1e-5)
        tokenizer = data.tokenizer()
        for context in card.contexts:
            assert context.before + context.token in tokenizer.decode(data.input_ids(range(data.num_windows)).flatten())


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
