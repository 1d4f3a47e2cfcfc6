"""What an inspection computes equals its slow reference."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from cocomix import AttributionConfig, CoCoMixForCausalLM, TokenDataset, load_causal_lm
from cocomix.labels.config import LabelCriterion
from cocomix.labels.live import load_extractor
from cocomix.tools.inspect import effects
from cocomix.tools.inspect.cards import TOKENS_BEFORE
from cocomix.tools.inspect.effects import direct_effects, measured_effects, nearest_concepts
from cocomix.tools.inspect.histograms import Histograms
from cocomix.tools.inspect.occurrences import StrongestOccurrences, find_occurrences
from cocomix.tools.inspect.summary import norm_histogram, usage
from tests.conftest import Tiny
from tests.reference import inspection as reference


@pytest.fixture(scope="module")
def model(student: Path) -> CoCoMixForCausalLM:
    found = load_causal_lm(student)
    assert isinstance(found, CoCoMixForCausalLM)
    return found


@pytest.mark.parametrize("num_kept", [1, 3, 7])
def test_the_strongest_occurrences_are_those_of_a_full_sort(num_kept: int) -> None:
    generator = torch.Generator().manual_seed(0)
    C, B, T, K = 5, 3, 4, 2
    found, occurrences = StrongestOccurrences(C, num_kept), []
    for batch in range(4):
        window_ids = torch.arange(B) * 10 + batch
        concepts = torch.rand(B, T, C, generator=generator).argsort(-1)[..., :K]
        values = torch.randn(B, T, K, generator=generator)
        present = torch.rand(B, T, K, generator=generator) > 0.3
        found.add(window_ids, concepts, values, present)
        occurrences += [
            (int(window_ids[b]), t, int(concepts[b, t, k]), float(values[b, t, k]))
            for b, t, k in present.nonzero().tolist()
        ]
    for concept, expected in enumerate(reference.strongest(occurrences, C, num_kept)):
        assert found.values[concept, : len(expected)].tolist() == expected
        assert bool((found.values[concept, len(expected) :] == -torch.inf).all())
        places = {(w, t, value) for w, t, other, value in occurrences if other == concept}
        kept = zip(
            found.windows[concept].tolist(),
            found.positions[concept].tolist(),
            found.values[concept].tolist(),
            strict=True,
        )
        assert {place for place in kept if place[0] >= 0} <= places
    assert found.counts.tolist() == [sum(other == c for *_, other, _ in occurrences) for c in range(C)]


def test_a_histogram_that_grows_equals_one_made_at_once() -> None:
    generator = torch.Generator().manual_seed(0)
    found, values = Histograms(3), []
    for scale in (0.01, 100.0, 1.0, 3e4):
        concepts = torch.randint(2, (50,), generator=generator)
        values.append((concepts, scale * torch.randn(50, generator=generator)))
        found.add(*values[-1])
    assert found.of(2) is None
    concepts, numbers = (torch.cat(parts) for parts in zip(*values, strict=True))
    for concept in (0, 1):
        histogram = found.of(concept)
        assert histogram is not None
        start, width, counts = histogram
        own = numbers[concepts == concept].double()
        assert width * 16 <= float(own.abs().max()) < width * 32
        expected = torch.histc(own, len(counts), start, start + len(counts) * width)
        assert counts == expected.long().tolist()


def test_excerpts_hold_the_activation_at_every_token() -> None:
    concepts = torch.tensor([[[2, 0], [1, 2], [2, 1], [0, 1]]])
    values = torch.tensor([[[1.0, 2.0], [3.0, 4.0], [5.0, 6.0], [7.0, 8.0]]])
    present = values != 4
    found = StrongestOccurrences(3, 1)
    found.add(torch.tensor([9]), concepts, values, present)
    assert found.positions[:, 0].tolist() == [3, 3, 2]
    around = found.around[2, 0, TOKENS_BEFORE - 2 : TOKENS_BEFORE + 2]
    assert around.tolist() == [1.0, 0.0, 5.0, 0.0]
    assert float(found.around[2].sum()) == 6


@pytest.mark.parametrize("criterion", ["activation_value", "attribution"])
def test_quality_equals_a_count_by_hand(tiny: Tiny, model: CoCoMixForCausalLM, criterion: LabelCriterion) -> None:
    data = TokenDataset(tiny.data, "validation")
    extractor = load_extractor(tiny.teacher, tiny.sae, AttributionConfig(criterion))
    found = find_occurrences(model, data, extractor=extractor, labels=None, num_kept=2, num_random=2, max_windows=9)
    ids = torch.cat([windows.input_ids for windows in data.batches(64, 9)])
    labels, output = extractor(ids), model(ids, output_hidden_states=True)
    valid, num_labels = (labels >= 0).any(-1), (labels >= 0).sum(-1, keepdim=True)
    assert (int(num_labels[valid].min()) < 4) == (criterion == "attribution")
    empty = torch.zeros(*valid.shape, model.config.num_concepts)
    is_label = empty.scatter_add(-1, labels.clamp(min=0), (labels >= 0).float())[valid]
    is_active = torch.zeros_like(is_label).scatter(-1, output.concept_indices[valid], 1.0)
    quality = found.quality
    assert quality is not None
    assert quality.num_tokens == int(valid.sum())
    torch.testing.assert_close(quality.recall(), (is_label * is_active).sum(0) / is_label.sum(0), equal_nan=True)
    torch.testing.assert_close(quality.precision(), (is_label * is_active).sum(0) / is_active.sum(0), equal_nan=True)
    hidden = output.hidden_states[model.config.mixer.insertion]
    probability = reference.concept_probabilities(model, hidden, num_labels)[valid]
    torch.testing.assert_close(quality.mass.float(), probability.sum(0), rtol=1e-4, atol=1e-4)  # sums in another order
    summary = quality.summary()
    active = probability[is_active.bool()]
    assert summary["recall_at"]["4"] == pytest.approx(float((is_label * is_active).sum() / is_label.sum()))
    assert sum(bin_["num_predictions"] for bin_ in summary["reliability"]) == len(active)
    high = summary["reliability"][3]
    inside = (active >= high["from"]) & (active < high["to"])
    assert high["num_predictions"] == int(inside.sum())
    if bool(inside.any()):
        assert high["label_rate"] == pytest.approx(float(is_label[is_active.bool()][inside].mean()))


def test_direct_effects_and_neighbours(model: CoCoMixForCausalLM, monkeypatch: pytest.MonkeyPatch) -> None:
    tokens = torch.arange(3, 90, 2)
    rows = model.mixer.compress_weight.detach()  # type: ignore[union-attr]
    monkeypatch.setattr(effects, "CHUNK_ELEMENTS", 7 * model.config.vocab_size)  # several chunks of odd size
    found, logits_of = direct_effects(model.adapter, rows, tokens, 5)
    nearest, cosines = nearest_concepts(rows, 4)
    for concept in (0, 7, 31):
        logits = reference.direct_logits(model, concept, tokens)
        torch.testing.assert_close(found.promoted_by[concept], logits.topk(5).values, rtol=1e-4, atol=1e-4)
        start, width, counts = logits_of.of(concept)
        assert start == pytest.approx(float(logits.detach().min()), rel=1e-3)
        assert start + width * len(counts) == pytest.approx(float(logits.detach().max()), rel=1e-3)
        assert sum(counts) == len(tokens)
        torch.testing.assert_close(
            logits[(tokens[:, None] == found.suppressed[concept]).nonzero()[:, 0]].sort().values,
            found.suppressed_by[concept].sort().values,
            rtol=1e-4,
            atol=1e-4,
        )
        cosine = torch.cosine_similarity(rows[concept], rows, dim=-1)
        cosine[concept] = -2
        torch.testing.assert_close(cosines[concept], cosine.topk(4).values)
        assert concept not in nearest[concept].tolist()


def test_measured_effects_are_those_of_one_edit_at_a_time(tiny: Tiny, model: CoCoMixForCausalLM) -> None:
    data = TokenDataset(tiny.data, "validation")
    usual = torch.linspace(1, 2, model.config.num_concepts)
    concepts = [5, 0, 31, 2, 9, 10, 11, 12, 13]
    found = measured_effects(model, data, concepts, usual, 4)
    inputs = next(data.batches(effects.NUM_PROMPTS, effects.NUM_PROMPTS)).input_ids[:, : effects.TOKENS_PER_PROMPT]
    kept = torch.linspace(inputs.shape[1] // 8, inputs.shape[1] - 1, 8).long()
    for row, concept in enumerate(concepts):
        change, distance = reference.set_one(model, inputs, kept, concept, float(usual[concept]))
        assert float(found.change[row]) == pytest.approx(distance, rel=1e-3)
        torch.testing.assert_close(found.effects.promoted_by[row], change.topk(4).values, rtol=1e-3, atol=1e-6)
        torch.testing.assert_close(
            found.effects.suppressed_by[row], change.topk(4, largest=False).values, rtol=1e-3, atol=1e-6
        )


def test_usage_and_norms() -> None:
    even = usage(torch.tensor([3, 3, 3, 3]))
    assert (even["entropy_bits"], even["effective_concepts"], even["num_dead"]) == (2.0, 4.0, 0)
    assert usage(torch.tensor([5, 0, 0]))["num_dead"] == 2
    assert usage(torch.zeros(3, dtype=torch.long))["effective_concepts"] == 0
    histogram = norm_histogram(torch.tensor([0.0, 0.003, 0.2, 30.0]))
    assert (histogram["num_zero"], histogram["num_small"], sum(histogram["num_concepts"])) == (1, 2, 3)
    assert histogram["log10_edges"][0] == -3
    assert len(histogram["log10_edges"]) == len(histogram["num_concepts"]) + 1
    assert sum(norm_histogram(torch.zeros(3))["num_concepts"]) == 0
