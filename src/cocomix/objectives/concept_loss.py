"""The concept objective: its loss, and the sources of its labels.

Labels are read from a concept dataset, or computed by teacher and autoencoder while the student trains. Both give the same
labels for the same windows, except that the teacher can round differently in passes over other numbers of windows, which
can swap two nearly equal scores.
"""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from cocomix.base.devices import Machine
from cocomix.data import IGNORED_LABEL
from cocomix.data.concept_dataset import ConceptDataset
from cocomix.data.token_dataset import TokenDataset
from cocomix.labels.attribution import ConceptExtractor
from cocomix.labels.config import AttributionConfig, require_labels
from cocomix.labels.live import TeacherLabels, extraction_flops_per_token
from cocomix.modeling.output import CoCoMixOutput
from cocomix.objectives.base import CONCEPT_LABELS, Batch, Cost, CostInputs, Objective, Surroundings, WindowData
from cocomix.objectives.config import ConceptLossConfig, ObjectiveConfig, RunSettings
from cocomix.sae.config import SparseAutoencoderConfig
from cocomix.sae.model import SparseAutoencoder


class ConceptLoss(Objective):
    """Concept loss mean_k CE(z, I_k) over the labels of each labelled position, in nats (paper, equation 4)."""

    Config: ClassVar[type[ObjectiveConfig]] = ConceptLossConfig
    name = "concept_loss"

    def __init__(self, config: ConceptLossConfig, surroundings: Surroundings) -> None:
        super().__init__(config, surroundings)
        self.mixer, self.hidden_size = surroundings.mixer, surroundings.hidden_size

    def count(self, batch: Batch) -> Int64[Tensor, ""]:
        assert batch.concept_labels is not None
        return (batch.concept_labels != IGNORED_LABEL).any(-1).sum()

    def total(self, batch: Batch, output: CoCoMixOutput) -> Float[Tensor, ""]:
        # The mixer sums the loss chunk by chunk while it chooses the strongest concepts, so logits are never kept.
        assert output.concept_loss_sum is not None
        return output.concept_loss_sum

    def student_flops_per_token(self) -> float:
        with_loss, without = (
            self.mixer.backward_flops(self.hidden_size, "algorithmic", has_concept_loss=has) for has in (True, False)
        )
        return with_loss - without

    @classmethod
    def cost(cls, config: Any, inputs: CostInputs) -> Cost:
        if not inputs.run.student.mixer.has_concepts:
            return Cost()
        if inputs.labels_flops is not None:
            return Cost(labels=inputs.labels_flops)
        with torch.device("meta"):
            sae = SparseAutoencoder(
                SparseAutoencoderConfig(
                    hidden_size=inputs.teacher.config.hidden_size,
                    num_latents=inputs.num_concepts,
                    num_active_latents=min(inputs.run.attribution.num_labels, inputs.num_concepts),
                )
            )
        extractor = ConceptExtractor(inputs.teacher, sae, inputs.teacher_layer, inputs.run.attribution)
        return Cost(labels=extraction_flops_per_token(extractor, inputs.context_length))


def open_labels(run: RunSettings, data: TokenDataset) -> WindowData | None:
    """The labels that a run names: stored, computed on the fly, or None."""
    if run.labels is not None:
        stored = ConceptDataset(run.labels, data)
        if run.attribution != AttributionConfig():
            require_labels(run.labels, stored.settings["attribution"], run.attribution)
        return WindowData(
            CONCEPT_LABELS, stored.num_windows, stored.labels, stored.inputs, stored.training_flops, source=stored
        )
    if run.sae is not None:
        assert run.teacher is not None
        assert run.precision != "auto", "a run chooses before it opens its data"
        machine = Machine(precision=run.precision)
        live = TeacherLabels(data, run.teacher, run.sae, run.layer, run.attribution, machine)
        functions = live.training_flops, live.to, live.check
        return WindowData(CONCEPT_LABELS, live.num_windows, live.labels, live.inputs, *functions, source=live)
    return None
