"""What a run trains: the student and the objectives' own modules, as one module.

It is what is wrapped for several devices, what the optimizer optimizes and what a checkpoint holds. Teacher and autoencoder
are read by objectives and labels, and are no part of it.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.nn.utils import get_total_norm

from cocomix.modeling.model import CoCoMixForCausalLM
from cocomix.objectives.base import Batch, Objective


class TrainableModule(nn.Module):
    """A student with all that is learned beside it.

    Args:
        model: the student.
        objectives: what it minimises; they are no modules, so what they hold is not registered, but for their heads.

    `model` is the student, `heads` are the objectives' own modules by the objectives' names; there mostly are none.
    """

    def __init__(self, model: CoCoMixForCausalLM, objectives: Sequence[Objective]) -> None:
        super().__init__()
        self.model = model
        self.heads = nn.ModuleDict({o.name: o.head for o in objectives if o.head is not None})
        self.objectives = tuple(objectives)

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        """Run the student once.

        Returns:
            each objective's sum over the batch's targets, float32, by the objective's name; and counters of concepts,
            int64 and without a graph, which `MixerMetrics.add` takes.
        """
        output = self.model(
            **batch.windows.inputs(),
            labels=batch.windows.input_ids,
            concept_labels=batch.concept_labels,
            return_logits=any(o.needs_logits for o in self.objectives),
            output_hidden_states=any(o.needs_hidden_states for o in self.objectives),
        )
        sums = {o.name: o.total(batch, output) for o in self.objectives}
        return sums | self.model.mixer.counts(output, batch.concept_labels)


def gradient_norms(student: TrainableModule) -> dict[str, Tensor]:
    """Norms of the backbone's and the mixer's gradients, to be taken before clipping; on sharded tensors, on all ranks."""
    parts = {"backbone": student.model.backbone, "mixer": student.model.mixer}
    norms = {}
    for name, part in parts.items():
        gradients = [p.grad for p in part.parameters() if p.grad is not None]
        if name == "backbone" or len(list(part.parameters())):
            norm = get_total_norm(gradients)
            norms[f"gradient_norm_{name}"] = norm.full_tensor() if isinstance(norm, DTensor) else norm
    return norms
