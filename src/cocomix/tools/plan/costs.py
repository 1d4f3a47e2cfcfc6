"""What a run computes for a token beside its model: the teacher's FLOPs, and those of heads that are trained along."""

from __future__ import annotations

from cocomix.objectives.base import Cost, CostInputs
from cocomix.tools.plan.teachers import PlannedTeacher
from cocomix.training.config import TrainConfig


def cost_of(
    run: TrainConfig,
    teacher: PlannedTeacher,
    num_concepts: int,
    context_length: int,
    *,
    labels_flops: float | None = None,
    draws_flops: float | None = None,
) -> Cost:
    """What a run's objectives add to it.

    Args:
        run: its settings.
        teacher: its shape.
        num_concepts: C, latents of the autoencoder.
        context_length: T.
        labels_flops: of finished labels, as they say; None: counted.
        draws_flops: of finished distillation targets, likewise.
    """
    inputs = CostInputs(run, teacher.model, teacher.layer, num_concepts, context_length, labels_flops, draws_flops)
    costs = (each.implementation().cost(each, inputs) for each in run.objectives if each.is_on(run))
    return sum(costs, Cost())
