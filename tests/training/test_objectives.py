"""Objectives: sums and counts equal their written-out form."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F
from transformers import AutoModelForCausalLM

from cocomix.data.token_dataset import Windows
from cocomix.training.objectives import Batch, Concepts, Distillation, NextToken
from tests.modeling.helpers import backbone_config, concept_labels, student, tokens


@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_distillation_is_the_divergence_from_the_teacher(temperature: float) -> None:
    teacher = AutoModelForCausalLM.from_config(backbone_config("gpt2")).eval().requires_grad_(False)
    model, ids = student(), tokens()
    batch = Batch(Windows(ids))
    output = model(input_ids=ids, labels=ids, return_logits=True)
    objective = Distillation(0.5, teacher, temperature)
    p = (teacher(ids).logits[:, :-1] / temperature).softmax(-1)
    q = (output.logits[:, :-1] / temperature).softmax(-1)
    expected = temperature**2 * (p * (p.log() - q.log())).sum()
    torch.testing.assert_close(objective.total(batch, output), expected)
    assert int(objective.count(batch)) == 2 * 8


def test_a_teacher_equal_to_the_student_costs_nothing() -> None:
    model, ids = student(mixer="none", mixing="none"), tokens()
    objective = Distillation(1.0, model.backbone)
    output = model(input_ids=ids, labels=ids, return_logits=True)
    assert float(objective.total(Batch(Windows(ids)), output).detach()) == pytest.approx(0.0, abs=1e-4)


def test_counts_are_known_from_the_batch_alone() -> None:
    model, ids, labels = student(), tokens(), concept_labels()
    labels[0, 3, 1] = -100
    batch = Batch(Windows(ids), labels)
    output = model(input_ids=ids, labels=ids, concept_labels=labels)
    assert int(NextToken().count(batch)) == int(output.lm_count) == 16
    assert int(Concepts().count(batch)) == int(output.concept_count) == 15
    expected = F.cross_entropy(model(ids).logits[:, :-1].flatten(0, 1), ids[:, 1:].flatten(), reduction="sum")
    torch.testing.assert_close(NextToken().total(batch, output), expected)
