"""What a run computes for a token: the student's FLOPs, and apart from them the teacher's."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from transformers import PreTrainedModel

from cocomix.concepts.attribution import AttributionConfig, ConceptExtractor
from cocomix.concepts.label_sources import extraction_flops_per_token
from cocomix.concepts.sae import SparseAutoencoder, SparseAutoencoderConfig
from cocomix.modeling.flops import causal_lm_flops_per_token
from cocomix.training.config import TrainConfig


@dataclass(frozen=True)
class TeacherCost:
    """FLOPs of the teacher, a token of text."""

    labels: float
    """Concept labels: computed once into a concept dataset, or along with training."""
    targets: float
    """Its forward pass for distillation or regression, in training."""

    @property
    def total(self) -> float:
        return self.labels + self.targets


def teacher_cost(
    config: TrainConfig, teacher: PreTrainedModel, layer: int, num_concepts: int, context_length: int
) -> TeacherCost:
    """What a run asks of its teacher.

    Args:
        config: of the run; its attribution is how labels are chosen.
        teacher: its shape, such as a model on the meta device.
        layer: 0-based block after which its dictionary reads.
        num_concepts: C, latents of the dictionary.
        context_length: T.
    """
    labels = targets = 0.0
    if config.student.mixer == "concept" and config.concept_loss_weight:
        extractor = _extractor(teacher, layer, num_concepts, config.attribution)
        labels = extraction_flops_per_token(extractor, context_length)
    if config.distillation.weight or config.hidden_regression.weight:
        targets = causal_lm_flops_per_token(teacher, context_length)
    return TeacherCost(labels, targets)


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
