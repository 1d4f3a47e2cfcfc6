"""What a run computes for a token beside its model: the teacher's FLOPs, and those of a head that is trained along."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from transformers import PreTrainedModel

from cocomix.labels.attribution import AttributionConfig, ConceptExtractor
from cocomix.labels.label_sources import extraction_flops_per_token
from cocomix.modeling.flops import causal_lm_flops_per_token
from cocomix.modeling.teacher import Teacher
from cocomix.objectives.base import HiddenRegression, regression_layer
from cocomix.sae.model import SparseAutoencoder, SparseAutoencoderConfig
from cocomix.tools.plan.teachers import PlannedTeacher
from cocomix.training.config import TrainConfig


@dataclass(frozen=True)
class TeacherCost:
    """FLOPs of the teacher, a token of text."""

    labels: float
    """Concept labels: computed once into a concept dataset, or along with training."""
    targets: float
    """Its forward pass for distillation or regression, in training."""
    stored_targets: float = 0.0
    """Its forward pass for distillation from stored draws, before training."""

    @property
    def total(self) -> float:
        return self.labels + self.targets + self.stored_targets


def teacher_cost(
    config: TrainConfig,
    teacher: PlannedTeacher,
    num_concepts: int,
    context_length: int,
    *,
    labels_flops: float | None = None,
    draws_flops: float | None = None,
) -> TeacherCost:
    """What a run asks of its teacher.

    Args:
        config: of the run; its attribution is how labels are chosen.
        teacher: its shape.
        num_concepts: C, latents of the dictionary.
        context_length: T.
        labels_flops: of finished labels, as they say; None: counted.
        draws_flops: of finished distillation targets, likewise.
    """
    labels = targets = stored_targets = 0.0
    if config.student.mixer == "concept" and config.concept_loss_weight:
        if labels_flops is None:
            extractor = _extractor(teacher.model, teacher.layer, num_concepts, config.attribution)
            labels_flops = extraction_flops_per_token(extractor, context_length)
        labels = labels_flops
    if config.distillation.weight:
        forward = causal_lm_flops_per_token(teacher.model, context_length)
        if config.distillation.targets is None:
            targets = forward
        else:
            stored_targets = forward if draws_flops is None else draws_flops
    if config.hidden_regression.weight:
        targets += _regression(config, teacher).teacher_flops_per_token(context_length)
    return TeacherCost(labels, targets, stored_targets)


def regression_head_flops(config: TrainConfig, teacher: PlannedTeacher) -> float:
    """Training FLOPs a token of the map from the student's hidden states to the teacher's; 0 without regression."""
    return _regression(config, teacher).student_flops_per_token() if config.hidden_regression.weight else 0.0


def _regression(config: TrainConfig, teacher: PlannedTeacher) -> HiddenRegression:
    """As training has it."""
    settings = config.hidden_regression
    middle = (int(teacher.model.config.num_hidden_layers) - 1) // 2
    opened = Teacher(teacher.model, middle if settings.teacher_layer is None else settings.teacher_layer)
    return HiddenRegression(settings.weight, opened, regression_layer(config), config.student.hidden_size)


def _extractor(
    teacher: PreTrainedModel, layer: int, num_concepts: int, attribution: AttributionConfig
) -> ConceptExtractor:
    with torch.device("meta"):
        sae = SparseAutoencoder(
            SparseAutoencoderConfig(
                hidden_size=teacher.config.hidden_size,
                num_latents=num_concepts,
                num_active_latents=min(attribution.num_labels, num_concepts),
            )
        )
    return ConceptExtractor(teacher, sae, layer, attribution)
