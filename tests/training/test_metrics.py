"""Metrics of concepts: their written-out form, on any number of ranks, and the same after a resume."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, distributed

from cocomix.mixers.metrics import ConceptMetrics, concept_counts
from cocomix.modeling.output import CoCoMixOutput
from tests.reference import objectives as reference

C = 9


def counts(labels: Tensor | None, active: Tensor) -> dict[str, Tensor]:
    return concept_counts(CoCoMixOutput(concept_indices=active), labels, C)


def some(seed: int) -> tuple[Tensor, Tensor]:
    """Labels and active concepts of 3 windows of 5 tokens; concepts 0 and 8 are never active."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(0, C, (3, 5, 2), generator=generator)
    labels[:, -1] = -100
    labels[1, 0, 1] = -100
    active = torch.stack([torch.randperm(C - 2, generator=generator)[:3] + 1 for _ in range(15)]).view(3, 5, 3)
    return labels, active


def test_values_between_two_lines_equal_their_references() -> None:
    metrics = ConceptMetrics(C, dead_after_tokens=1000, has_labels=True)
    (labels, active), (more_labels, more_active) = some(0), some(1)
    for part in ((labels, active), (more_labels, more_active)):
        metrics.add(counts(*part))
    metrics.merge()
    line = metrics.line(num_tokens=30)
    both, found = torch.cat([labels, more_labels]), torch.cat([active, more_active])
    assert float(line["concept_recall"]) == pytest.approx(reference.concept_recall(both, found))
    assert float(line["label_entropy"]) == pytest.approx(reference.label_entropy(both))
    assert float(line["dead_concepts"]) == pytest.approx(2 / C)
    # A line starts counting anew.
    metrics.add(counts(labels, active))
    metrics.merge()
    line = metrics.line(num_tokens=45)
    assert float(line["concept_recall"]) == pytest.approx(reference.concept_recall(labels, active))


def test_a_concept_is_dead_after_so_many_tokens_without_it() -> None:
    metrics = ConceptMetrics(C, dead_after_tokens=20, has_labels=False)
    shares = []
    for step, concept in enumerate((0, 1, 2, 2, 2)):
        metrics.add(counts(None, torch.full((1, 10, 1), concept)))
        metrics.merge()
        line = metrics.line(num_tokens=10 * (step + 1))
        assert line.keys() == {"dead_concepts"}
        shares.append(float(line["dead_concepts"]) * C)
    # Until 20 tokens are seen the window is what was seen; then 0 leaves it, then 1.
    assert shares == pytest.approx([8, 7, 7, 8, 8])


def test_a_restored_state_goes_on_as_if_nothing_had_happened() -> None:
    whole, first, second = (ConceptMetrics(C, 20, has_labels=True) for _ in range(3))
    for metrics in (whole, first):
        metrics.add(counts(*some(0)))
        metrics.merge()
        metrics.line(15)
        metrics.add(counts(*some(1)))
    first.merge()
    for name, tensor in second.state().items():
        tensor.copy_(first.state()[name])
    for metrics in (whole, second):
        metrics.add(counts(*some(2)))
        metrics.merge()
    assert whole.line(45) == second.line(45)


def test_two_ranks_count_what_one_would(monkeypatch: pytest.MonkeyPatch) -> None:
    one, ranks = ConceptMetrics(C, 20, has_labels=True), [ConceptMetrics(C, 20, has_labels=True) for _ in range(2)]
    for seed, metrics in enumerate(ranks):
        one.add(counts(*some(seed)))
        metrics.add(counts(*some(seed)))
    together = ranks[0]._own + ranks[1]._own
    monkeypatch.setattr(distributed, "all_reduce", lambda tensor: tensor.copy_(together))
    for metrics in ranks:
        metrics.merge(num_ranks=2)
    one.merge()
    line = one.line(30)
    assert all(metrics.line(30) == line for metrics in ranks)


def test_no_concepts_and_no_labels() -> None:
    assert concept_counts(CoCoMixOutput(), None, C) == {}
    metrics = ConceptMetrics(C, 20, has_labels=True)
    metrics.add({"lm_loss": torch.zeros(())})
    metrics.add(counts(torch.full((1, 4, 2), -100), torch.zeros(1, 4, 3, dtype=torch.long)))
    metrics.merge()
    assert metrics.line(4).keys() == {"dead_concepts"}
