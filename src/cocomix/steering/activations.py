"""How often and how strongly each concept is active in the mixture on some text, and what comes right before it."""

from __future__ import annotations

import torch
from torch import Tensor

from cocomix.data.token_dataset import TokenDataset
from cocomix.mixers.edits import ConceptEdit, concept_edits
from cocomix.modeling.model import CoCoMixForCausalLM
from cocomix.steering.concept_notes import ActivationStatistics

# Shapes: B batch, T tokens, K active concepts, C concepts.

BATCH_SIZE = 32
#: So many of a token's active concepts are what it is about; as many as it has labels by default.
NUM_STRONGEST = 4


class ActivationRecorder(ConceptEdit):
    """Sums the active values that pass, on their device, and changes nothing.

    Args:
        num_concepts: C.
        hidden_size: D.
        device: of the model.
    """

    def __init__(self, num_concepts: int, hidden_size: int, device: torch.device) -> None:
        self.num_tokens = 0
        # Vectors at tokens before each concept, their number, and those of all tokens.
        self.vectors_before = torch.zeros(num_concepts, hidden_size, device=device)
        self.num_before = torch.zeros(num_concepts, device=device)
        self.vectors = torch.zeros(hidden_size, dtype=torch.float64, device=device)
        # Counts, sums, sums of squares and sums of sizes of each concept: (4, C)
        self.sums = torch.zeros(4, num_concepts, dtype=torch.float64, device=device)
        self.largest = torch.full((num_concepts,), -torch.inf, device=device)

    def edit_active(self, indices: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        flat, wide = indices.flatten(), values.detach().flatten().double()
        self.num_tokens += indices.shape[0] * indices.shape[1]
        self.sums.index_add_(1, flat, torch.stack([torch.ones_like(wide), wide, wide.square(), wide.abs()]))
        self.largest.scatter_reduce_(0, flat, wide.float(), reduce="amax")
        self.strongest = indices[..., :NUM_STRONGEST]  # they come sorted
        return indices, values

    def edit_vectors(self, vectors: Tensor) -> Tensor:
        seen = vectors.detach().float()
        following = self.strongest[:, 1:].flatten(0, 1)  # (B * (T - 1), A)
        before = seen[:, :-1].flatten(0, 1)
        for concepts in following.unbind(1):
            self.vectors_before.index_add_(0, concepts, before)
        self.num_before += torch.bincount(following.flatten(), minlength=len(self.num_before))
        self.vectors += seen.double().sum((0, 1))
        return vectors

    def statistics(self) -> ActivationStatistics:
        """Of all that passed."""
        counts, sums, squares, sizes = self.sums.cpu()
        is_active = counts > 0
        divisor = counts.clamp(min=1)
        mean, usual = sums / divisor, sizes / divisor
        # A size of exactly zero would be no unit.
        measured = usual[is_active & (usual > 0)]
        directions = self.vectors_before / self.num_before.clamp(min=1).unsqueeze(-1)
        directions -= (self.vectors / self.num_tokens).float()
        typical = measured.median() if len(measured) else torch.ones((), dtype=usual.dtype)
        return ActivationStatistics(
            num_tokens=self.num_tokens,
            share=(counts / self.num_tokens).float(),
            mean=mean.float(),
            std=(squares / divisor - mean.square()).clamp(min=0).sqrt().float(),
            largest=torch.where(is_active, self.largest.cpu(), 0.0),
            usual=torch.where(usual > 0, usual, typical).float(),
            directions=torch.where(self.num_before.unsqueeze(-1) > 0, directions, 0.0).cpu(),
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
    model.concept_mixer  # noqa: B018 (refuses a model without concepts)
    recorder = ActivationRecorder(model.config.num_concepts, model.config.hidden_size, model.device)
    with concept_edits(model, recorder):
        for windows in dataset.batches(BATCH_SIZE, max_windows, description=description):
            inputs = {name: tensor.to(model.device) for name, tensor in windows.inputs().items()}
            model(**inputs, use_cache=False, logits_to_keep=1)
    return recorder.statistics()
