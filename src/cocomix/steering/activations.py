"""How often and how strongly each concept is active in the mixture, measured on some text."""

from __future__ import annotations

import torch
from torch import Tensor

from cocomix.data.token_dataset import TokenDataset
from cocomix.mixers.edits import ConceptEdit, concept_edits
from cocomix.modeling.model import CoCoMixForCausalLM
from cocomix.steering.concept_metadata import ActivationStatistics

# Shapes: B batch, T tokens, K active concepts, C concepts.

BATCH_SIZE = 32


class ActivationRecorder(ConceptEdit):
    """Sums the activations of every forward pass, on the model's device, and changes nothing.

    Args:
        num_concepts: C.
        device: of the model.
    """

    def __init__(self, num_concepts: int, device: torch.device) -> None:
        self.num_tokens = 0
        # (4, C): per concept the number of activations, and the sums of v, v^2 and |v|.
        self.sums = torch.zeros(4, num_concepts, dtype=torch.float64, device=device)
        self.largest = torch.full((num_concepts,), -torch.inf, device=device)

    def edit_active(self, indices: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        flat, wide = indices.flatten(), values.detach().flatten().double()
        self.num_tokens += indices.shape[0] * indices.shape[1]
        self.sums.index_add_(1, flat, torch.stack([torch.ones_like(wide), wide, wide.square(), wide.abs()]))
        self.largest.scatter_reduce_(0, flat, wide.float(), reduce="amax")
        return indices, values

    def statistics(self) -> ActivationStatistics:
        """Statistics of all tokens seen so far, without directions."""
        counts, sums, squares, sizes = self.sums.cpu()
        is_active = counts > 0
        divisor = counts.clamp(min=1)
        mean, mean_abs = sums / divisor, sizes / divisor
        # A unit must be positive, so a concept whose activations were all exactly zero takes the median as well.
        positive = mean_abs[is_active & (mean_abs > 0)]
        median = positive.median() if len(positive) else torch.ones((), dtype=mean_abs.dtype)
        return ActivationStatistics(
            num_tokens=self.num_tokens,
            activation_rate=(counts / self.num_tokens).float(),
            mean=mean.float(),
            std=(squares / divisor - mean.square()).clamp(min=0).sqrt().float(),
            largest=torch.where(is_active, self.largest.cpu(), 0.0),
            mean_abs=torch.where(mean_abs > 0, mean_abs, median).float(),
        )


@torch.no_grad()
def concept_activations(
    model: CoCoMixForCausalLM, dataset: TokenDataset, max_windows: int | None = None, *, description: str | None = None
) -> ActivationStatistics:
    """Statistics of a model's active concepts, without directions.

    Args:
        model: in evaluation mode, with a concept mixer.
        dataset: text to read.
        max_windows: how many evenly spaced windows to read; None: all.
        description: name of the work in a progress line; None: no line.

    Raises:
        CocomixError: the model predicts no concepts.
    """
    model.concept_mixer  # noqa: B018 (refuses a model without concepts)
    recorder = ActivationRecorder(model.config.num_concepts, model.device)
    with concept_edits(model, recorder):
        for windows in dataset.batches(BATCH_SIZE, max_windows, description=description):
            inputs = {name: tensor.to(model.device) for name, tensor in windows.inputs().items()}
            model(**inputs, use_cache=False, logits_to_keep=1)
    return recorder.statistics()
