"""How often and how strongly each concept is active in the mixture on some text."""

from __future__ import annotations

import torch
from torch import Tensor

from cocomix.base.errors import CocomixError
from cocomix.data.token_dataset import TokenDataset
from cocomix.modeling.concept_notes import ActivationStatistics
from cocomix.modeling.edits import ConceptEdit, concept_edits
from cocomix.modeling.model import CoCoMixForCausalLM

# Shapes: B batch, T tokens, K active concepts, C concepts.

BATCH_SIZE = 32


class ActivationRecorder(ConceptEdit):
    """Sums the active values that pass, on their device, and changes nothing.

    Args:
        num_concepts: C.
        device: of the model.
    """

    def __init__(self, num_concepts: int, device: torch.device) -> None:
        self.num_tokens = 0
        # Counts, sums, sums of squares and sums of sizes of each concept: (4, C)
        self.sums = torch.zeros(4, num_concepts, dtype=torch.float64, device=device)
        self.largest = torch.full((num_concepts,), -torch.inf, device=device)

    def edit_active(self, indices: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        flat, wide = indices.flatten(), values.detach().flatten().double()
        self.num_tokens += indices.shape[0] * indices.shape[1]
        self.sums.index_add_(1, flat, torch.stack([torch.ones_like(wide), wide, wide.square(), wide.abs()]))
        self.largest.scatter_reduce_(0, flat, wide.float(), reduce="amax")
        return indices, values

    def statistics(self) -> ActivationStatistics:
        """Of all that passed."""
        counts, sums, squares, sizes = self.sums.cpu()
        is_active = counts > 0
        divisor = counts.clamp(min=1)
        mean, usual = sums / divisor, sizes / divisor
        # A size of exactly zero would be no unit.
        measured = usual[is_active & (usual > 0)]
        typical = measured.median() if len(measured) else torch.ones((), dtype=usual.dtype)
        return ActivationStatistics(
            num_tokens=self.num_tokens,
            share=(counts / self.num_tokens).float(),
            mean=mean.float(),
            std=(squares / divisor - mean.square()).clamp(min=0).sqrt().float(),
            largest=torch.where(is_active, self.largest.cpu(), 0.0),
            usual=torch.where(usual > 0, usual, typical).float(),
        )


@torch.no_grad()
def concept_activations(
    model: CoCoMixForCausalLM, dataset: TokenDataset, max_windows: int | None = None, *, description: str | None = None
) -> ActivationStatistics:
    """Statistics of a model's active concepts.

    Args:
        model: in evaluation mode, with a concept mixer.
        dataset: text.
        max_windows: look at so many evenly spaced windows; None: all.
        description: name of the work in a progress line; None: no line.

    Raises:
        CocomixError: the model predicts no concepts.
    """
    if model.config.mixer != "concept":
        raise CocomixError(f"a model with mixer {model.config.mixer!r} has no concepts")
    recorder = ActivationRecorder(model.config.num_concepts, model.device)
    with concept_edits(model, recorder):
        for windows in dataset.batches(BATCH_SIZE, max_windows, description=description):
            inputs = {name: tensor.to(model.device) for name, tensor in windows.inputs().items()}
            model(**inputs, use_cache=False, logits_to_keep=1)
    return recorder.statistics()
