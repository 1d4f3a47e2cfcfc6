"""Objectives: sums and counts equal their written-out form, whatever the batches; draws have the right mean."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import AutoModelForCausalLM, PreTrainedModel

from cocomix.data.target_dataset import SampledTargets
from cocomix.data.token_dataset import Windows
from cocomix.labels.distillation_targets import draw, stratified
from cocomix.mixers.config import ConceptConfig, MixerConfig
from cocomix.modeling.model import CoCoMixForCausalLM
from cocomix.modeling.output import CoCoMixOutput
from cocomix.modeling.teacher import Teacher
from cocomix.objectives.base import CONCEPT_LABELS, Batch, Objective, Surroundings
from cocomix.objectives.concept_loss import ConceptLoss
from cocomix.objectives.config import (
    ConceptLossConfig,
    DistillationConfig,
    HiddenRegressionConfig,
    MultiTokenConfig,
    NextTokenConfig,
    ObjectiveConfig,
)
from cocomix.objectives.distillation import TARGETS, Distillation, SampledDistillation
from cocomix.objectives.hidden_regression import HiddenRegression
from cocomix.objectives.multi_token import MultiToken
from cocomix.objectives.next_token import NextToken
from cocomix.training.config import OptimizerConfig
from cocomix.training.optimizer import adamw, clip_in_step
from cocomix.training.trainable import TrainableModule, gradient_norms
from tests.modeling.helpers import VOCAB_SIZE, backbone_config, concept_labels, student, tokens
from tests.reference import objectives as reference


def teacher_model(**settings: Any) -> PreTrainedModel:
    torch.manual_seed(1)
    return AutoModelForCausalLM.from_config(backbone_config("gpt2", **settings)).eval().requires_grad_(False)


def made(
    kind: type[Objective],
    config: ObjectiveConfig,
    teacher: PreTrainedModel | None = None,
    mixer: MixerConfig | None = None,
    seed: int = 0,
) -> Any:
    """An objective of a run with a small student."""
    return kind(config, Surroundings(16, 3, mixer or ConceptConfig(), lambda: teacher, seed))


def next_token() -> NextToken:
    return made(NextToken, NextTokenConfig())


def labelled(ids: Tensor, labels: Tensor) -> Batch:
    return Batch(Windows(ids), {CONCEPT_LABELS: labels})


def targets_of(teacher: PreTrainedModel, ids: Tensor, num_samples: int, temperature: float) -> SampledTargets:
    """Draws as the command makes them."""
    logits = teacher(ids).logits[:, :-1] / temperature
    uniform = torch.stack([torch.from_numpy(stratified(0, w, logits.shape[1], num_samples)) for w in range(len(ids))])
    drawn, entropy = draw(logits.flatten(0, 1), uniform.flatten(0, 1))
    return SampledTargets(drawn.view(*logits.shape[:2], -1), entropy.view(logits.shape[:2]))


@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_distillation_is_the_divergence_from_the_teacher(temperature: float) -> None:
    teacher = teacher_model()
    model, ids = student(), tokens()
    batch = Batch(Windows(ids))
    output = model(input_ids=ids, labels=ids, return_logits=True)
    objective = made(Distillation, DistillationConfig(0.5, temperature=temperature), teacher)
    p = (teacher(ids).logits[:, :-1] / temperature).softmax(-1)
    q = (output.logits[:, :-1] / temperature).softmax(-1)
    expected = temperature**2 * (p * (p.log() - q.log())).sum()
    torch.testing.assert_close(objective.total(batch, output), expected)
    assert int(objective.count(batch)) == 2 * 8


def test_a_teacher_equal_to_the_student_costs_nothing() -> None:
    model, ids = student(mixer="none", mixing="none"), tokens()
    objective = made(Distillation, DistillationConfig(1.0), model.backbone)
    output = model(input_ids=ids, labels=ids, return_logits=True)
    assert float(objective.total(Batch(Windows(ids)), output).detach()) == pytest.approx(0.0, abs=1e-4)


def test_counts_are_known_from_the_batch_alone() -> None:
    model, ids, labels = student(), tokens(), concept_labels()
    labels[0, 3, 1] = -100  # the others stay
    labels[1, 2] = -100
    batch = labelled(ids, labels)
    output = model(input_ids=ids, labels=ids, concept_labels=labels)
    assert int(next_token().count(batch)) == int(output.lm_count) == 16
    assert int(made(ConceptLoss, ConceptLossConfig()).count(batch)) == int(output.concept_count) == 15
    expected = F.cross_entropy(model(ids).logits[:, :-1].flatten(0, 1), ids[:, 1:].flatten(), reduction="sum")
    torch.testing.assert_close(next_token().total(batch, output), expected)


@pytest.mark.parametrize("temperature", [1.0, 1.7])
def test_sampled_distillation_is_the_cross_entropy_of_the_draws(temperature: float) -> None:
    teacher, ids = teacher_model(), tokens()
    batch = Batch(Windows(ids), {TARGETS: targets_of(teacher, ids, 5, temperature)})
    logits = torch.randn(2, 9, VOCAB_SIZE, requires_grad=True)
    objective = made(SampledDistillation, DistillationConfig(1.0, temperature=temperature))
    total = objective.total(batch, CoCoMixOutput(logits=logits))
    expected = reference.sampled_divergence(logits, batch.extra[TARGETS].tokens, teacher(ids).logits, temperature)
    torch.testing.assert_close(total, expected)
    gradient, wanted = (torch.autograd.grad(value, logits)[0] for value in (total, expected))
    torch.testing.assert_close(gradient, wanted)
    assert int(objective.count(batch)) == 16


@pytest.mark.parametrize(("temperature", "num_samples"), [(1.0, 3), (1.7, 1), (0.6, 8)])
def test_the_draws_give_value_and_gradient_of_the_divergence_in_the_mean(temperature: float, num_samples: int) -> None:
    B, P, V = 4000, 2, 11
    student_logits, teacher_logits = 2 * torch.randn(P, V), 2 * torch.randn(P, V)

    exact = student_logits.clone().requires_grad_()
    log_q, log_p = (logits.div(temperature).log_softmax(-1) for logits in (exact, teacher_logits))
    divergence = temperature**2 * F.kl_div(log_q, log_p, reduction="sum", log_target=True)
    divergence.backward()

    uniform = torch.stack([torch.from_numpy(stratified(0, window, P, num_samples)) for window in range(B)])
    drawn, entropy = draw((teacher_logits / temperature).repeat(B, 1), uniform.flatten(0, 1))
    batch = Batch(
        Windows(torch.zeros(B, P + 1, dtype=torch.long)),
        {TARGETS: SampledTargets(drawn.view(B, P, -1), entropy.view(B, P))},
    )
    logits = F.pad(student_logits, (0, 0, 0, 1)).repeat(B, 1, 1).requires_grad_()
    total = made(SampledDistillation, DistillationConfig(1.0, temperature=temperature)).total(
        batch, CoCoMixOutput(logits=logits)
    )
    total.backward()
    gradients = logits.grad[:, :P]
    error = gradients.std(0) / B**0.5
    # 5 standard errors: one of 60 checks fails by chance once in 30,000 seeds, and this seed is fixed.
    assert ((gradients.mean(0) - exact.grad).abs() <= 5 * error + 1e-6).all()
    # A cross-entropy of a few nats a window, over 4,000 windows: a standard error of about 0.05.
    assert total.item() / B == pytest.approx(divergence.item(), abs=0.2)
    # Stratified draws spread no more than independent ones, whose histogram has variance p (1 - p) / K; 5 % is noise.
    shares = F.one_hot(drawn.view(B, P, -1), V).float().mean(2)
    p = log_p.exp()
    assert shares.var(0).sum() <= 1.05 * (p * (1 - p)).sum() / num_samples


def test_draws_invert_the_distribution_function() -> None:
    logits = torch.randn(6, 7)
    logits[0, 3:] = -torch.inf  # nothing that can't be is drawn
    uniform = torch.from_numpy(stratified(3, 1, 6, 4))
    uniform[0, -1] = 1 - 2**-53
    found, entropy = draw(logits, uniform)
    assert torch.equal(found, reference.expected_draws(logits, uniform))
    assert torch.equal(found, found.sort(-1).values)
    torch.testing.assert_close(entropy, torch.distributions.Categorical(logits=logits).entropy())


@pytest.mark.parametrize(("mixing", "layer"), [("interleave", 0), ("interleave", 2), ("add", 1), ("none", 2)])
def test_hidden_regression_equals_its_reference(mixing: str, layer: int) -> None:
    model, ids = student(mixing=mixing), tokens()
    teacher = Teacher(teacher_model(hidden_size=24), 1)
    config = HiddenRegressionConfig(1.0, layer=layer, teacher_layer=1)
    objective = made(HiddenRegression, config, teacher.model, model.config.mixer)
    output = model(input_ids=ids, labels=ids, output_hidden_states=True)
    hidden = output.hidden_states[layer + 1]
    if hidden.shape[1] == 18:
        hidden = hidden[:, 1::2]  # the concept positions
    expected = reference.hidden_regression(hidden, teacher.residual(ids), objective.head.weight, objective.head.bias)
    total = objective.total(Batch(Windows(ids)), output)
    torch.testing.assert_close(total, expected)
    learned = [objective.head.weight, objective.head.bias, next(model.parameters())]
    for gradient, wanted in zip(
        torch.autograd.grad(total, learned, retain_graph=True), torch.autograd.grad(expected, learned), strict=True
    ):
        torch.testing.assert_close(gradient, wanted, atol=1e-5, rtol=1e-4)  # float32 sums in another order
    assert int(objective.count(Batch(Windows(ids)))) == 18


@pytest.mark.parametrize("layer", [None, 0])
def test_layer_alignment_equals_its_reference(layer: int | None) -> None:
    model, ids = student(mixing="add"), tokens()
    teacher = teacher_model(hidden_size=24)
    config = HiddenRegressionConfig(0.1, loss="cosine", layer=0, teacher_layer=layer)
    objective = made(HiddenRegression, config, teacher, model.config.mixer)
    output = model(input_ids=ids, labels=ids, output_hidden_states=True)
    # transformers returns the last block's output after the final norm.
    target = teacher(ids, output_hidden_states=True).hidden_states[-1 if layer is None else layer + 1]
    learned = [objective.head.weight, objective.head.bias, next(model.parameters())]
    expected = reference.layer_alignment(output.hidden_states[1], target, *learned[:2])
    total = objective.total(Batch(Windows(ids)), output)
    torch.testing.assert_close(total, expected)
    for gradient, wanted in zip(
        torch.autograd.grad(total, learned, retain_graph=True), torch.autograd.grad(expected, learned), strict=True
    ):
        torch.testing.assert_close(gradient, wanted, atol=1e-5, rtol=1e-4)  # float32 sums in another order


@pytest.mark.parametrize(("num_more_tokens", "T"), [(1, 9), (3, 9), (3, 3), (2, 2)])
def test_multi_token_prediction_equals_its_reference(num_more_tokens: int, T: int) -> None:
    ids, logits = tokens(T=T), torch.randn(2, T, VOCAB_SIZE, requires_grad=True)
    objective = made(MultiToken, MultiTokenConfig(0.5, num_more_tokens=num_more_tokens))
    total = objective.total(Batch(Windows(ids)), CoCoMixOutput(logits=logits))
    expected = reference.multi_token(logits, ids, num_more_tokens)
    torch.testing.assert_close(total, expected)
    assert int(objective.count(Batch(Windows(ids)))) == 2 * (T - 2)
    if T > 2:
        gradient, wanted = (torch.autograd.grad(value, logits)[0] for value in (total, expected))
        torch.testing.assert_close(gradient, wanted)


def all_objectives() -> list[Objective]:
    teacher = teacher_model()
    return [
        next_token(),
        made(ConceptLoss, ConceptLossConfig(0.3, "linear")),
        made(Distillation, DistillationConfig(0.5, "cosine", temperature=2.0), teacher),
        made(MultiToken, MultiTokenConfig(0.5, "linear")),
        made(HiddenRegression, HiddenRegressionConfig(0.7, layer=0, teacher_layer=1), teacher, seed=3),
    ]


def gradients_of(model: CoCoMixForCausalLM, batches: list[Batch]) -> dict[str, Tensor]:
    """Of one step as the loop takes it: sums divided by the counts of all batches."""
    objectives = all_objectives()
    trained = TrainableModule(model, objectives)
    counts = {o.name: sum(o.count(batch) for batch in batches) for o in objectives}
    trained.zero_grad()
    for batch in batches:
        sums = trained(batch)
        sum(o.config.weight_at(2, 10) * sums[o.name] / counts[o.name] for o in objectives).backward()
    return {name: p.grad.clone() for name, p in trained.named_parameters() if p.grad is not None}


def test_four_batches_equal_one_four_times_larger_with_uneven_labels() -> None:
    model, ids, labels = student(), tokens(B=8), concept_labels(B=8)
    labels[0] = -100  # one window without labels, others with few
    labels[3, 2:] = -100
    labels[6, ::2] = -100
    labels[7, :, 1:] = -100
    whole = gradients_of(model, [labelled(ids, labels)])
    parts = gradients_of(model, [labelled(ids[i : i + 2], labels[i : i + 2]) for i in range(0, 8, 2)])
    assert whole.keys() == parts.keys()
    assert "heads.hidden_loss.weight" in whole
    for name in whole:
        # Only the order of float32 sums differs.
        torch.testing.assert_close(parts[name], whole[name], atol=1e-5, rtol=1e-4)


def test_what_is_trained_is_the_student_and_the_heads_alone() -> None:
    before = student().state_dict()
    model, objectives = student(), all_objectives()
    trained = TrainableModule(model, objectives)
    names = {name.split(".")[0] for name, _ in trained.named_parameters()}
    assert names == {"model", "heads"}
    num_head = 16 * 16 + 16
    assert sum(p.numel() for p in trained.parameters()) == sum(p.numel() for p in model.parameters()) + num_head
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    # The head's initial weights are the seed's, whatever was drawn before.
    assert torch.equal(all_objectives()[-1].head.weight, trained.heads["hidden_loss"].weight)
    output = trained(labelled(tokens(), concept_labels()))
    assert all(output[o.name].dtype == torch.float32 and output[o.name].ndim == 0 for o in objectives)
    assert not TrainableModule(student(mixer="none", mixing="none"), [next_token()]).heads


def test_norms_of_the_parts_make_up_the_whole() -> None:
    trained = TrainableModule(student(), [next_token(), made(ConceptLoss, ConceptLossConfig())])
    sums = trained(labelled(tokens(), concept_labels()))
    (sums["lm_loss"] + sums["concept_loss"]).backward()
    norms = gradient_norms(trained)
    whole = torch.nn.utils.clip_grad_norm_(trained.parameters(), 1.0)
    torch.testing.assert_close((norms["gradient_norm_backbone"] ** 2 + norms["gradient_norm_mixer"] ** 2).sqrt(), whole)
    torch.testing.assert_close(norms["gradient_norm"], whole)
    assert norms.keys() == {"gradient_norm", "gradient_norm_backbone", "gradient_norm_mixer"}
    with_head = TrainableModule(student(), all_objectives())
    for parameter in with_head.parameters():
        parameter.grad = torch.ones_like(parameter)
    num_parameters = sum(parameter.numel() for parameter in with_head.parameters())
    torch.testing.assert_close(gradient_norms(with_head)["gradient_norm"], torch.tensor(num_parameters**0.5))


@pytest.mark.parametrize("max_norm", [0.5, 1e3])
def test_clipping_in_the_step_equals_clipping_before_it(max_norm: float) -> None:
    trained = {}
    for is_in_step in (True, False):
        torch.manual_seed(0)
        model = torch.nn.Linear(20, 30)
        optimizer = adamw(model, OptimizerConfig(learning_rate=0.1))
        for _ in range(3):
            model(torch.randn(7, 20)).square().sum().backward()
            if is_in_step:
                norm = torch.nn.utils.get_total_norm([p.grad for p in model.parameters()])
                clip_in_step(optimizer, norm, max_norm)
            else:
                torch.nn.utils.clip_grad_norm_(model.parameters(), max_norm)
            optimizer.step()
            optimizer.zero_grad()
        trained[is_in_step] = model.state_dict()
    for name, expected in trained[False].items():
        torch.testing.assert_close(trained[True][name], expected)
