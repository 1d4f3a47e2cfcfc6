"""The student and the objectives' own modules, as one module.

This module is wrapped for several devices, optimized and saved in checkpoints. Teacher and autoencoder are not part of it.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.nn.utils import get_total_norm

from cocomix.modeling.model import CoCoMixForCausalLM
from cocomix.objectives.base import Batch, Objective
from cocomix.objectives.config import steps_until


class TrainableModule(nn.Module):
    """A student, and the modules trained beside it.

    Args:
        model: the student.
        objectives: objectives to minimise; only their heads are registered as submodules.

    `heads` holds the objectives' own modules, if any, by the objectives' names.
    """

    def __init__(self, model: CoCoMixForCausalLM, objectives: Sequence[Objective]) -> None:
        super().__init__()
        self.model = model
        self.heads = nn.ModuleDict({o.name: o.head for o in objectives if o.head is not None})
        self.objectives = tuple(objectives)

    def forward(self, batch: Batch, step: int = 0, num_steps: int = 1) -> dict[str, Tensor]:
        """Run the student once, in a 0-based step of a run.

        Returns:
            the sum over the batch's targets, float32, of each objective that has not ended, by its name; and the counters
            for `MixerMetrics.add`, int64 and without a graph.
        """
        objectives = self.active_objectives(step, num_steps)
        output = self.model(
            **batch.windows.inputs(),
            labels=batch.windows.input_ids,
            concept_labels=batch.concept_labels,
            return_logits=any(o.needs_logits for o in objectives),
            output_hidden_states=any(o.needs_hidden_states for o in objectives),
        )
        sums = {o.name: o.total(batch, output) for o in objectives}
        return sums | self.model.mixer.counts(output, batch.concept_labels)

    def active_objectives(self, step: int, num_steps: int) -> list[Objective]:
        """The objectives that a 0-based step of a run minimises."""
        return [o for o in self.objectives if step < steps_until(o.config.end, num_steps)]


def gradient_norms(student: TrainableModule) -> dict[str, Tensor]:
    """Norms of the backbone's, the mixer's and all gradients, each gradient read once; with sharded tensors, on all ranks."""
    parts = {"backbone": student.model.backbone, "mixer": student.model.mixer, "heads": student.heads}
    norms = {}
    for name, part in parts.items():
        gradients = [p.grad for p in part.parameters() if p.grad is not None]
        if gradients:  # none of a mixer without weights, or of a frozen backbone
            norm = get_total_norm(gradients)
            norms[f"gradient_norm_{name}"] = norm.full_tensor() if isinstance(norm, DTensor) else norm
    total = torch.linalg.vector_norm(torch.stack(list(norms.values())))
    norms.pop("gradient_norm_heads", None)
    return norms | {"gradient_norm": total}
