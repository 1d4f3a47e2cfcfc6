"""FLOPs per token that objectives add to a run: the teacher's, and those of heads trained beside the student."""

from __future__ import annotations

from cocomix.objectives.base import Cost, CostInputs
from cocomix.tools.plan.teachers import PlannedTeacher
from cocomix.training.config import TrainConfig


def objectives_cost(
    run: TrainConfig,
    teacher: PlannedTeacher,
    num_concepts: int,
    context_length: int,
    *,
    labels_flops: float | None = None,
    draws_flops: float | None = None,
) -> Cost:
    """The cost that a run's objectives add to it, as a mean over all its tokens.

    Args:
        run: settings of the run.
        teacher: shape of the teacher.
        num_concepts: C, number of latents of the autoencoder.
        context_length: T, tokens per window.
        labels_flops: FLOPs per token recorded in finished labels; None: count them.
        draws_flops: FLOPs per token recorded in finished distillation targets; None: count them.
    """
    inputs = CostInputs(run, teacher.model, teacher.layer, num_concepts, context_length, labels_flops, draws_flops)
    costs = (each.implementation().cost(each, inputs) * each.end for each in run.objectives if each.is_on(run))
    return sum(costs, Cost())
