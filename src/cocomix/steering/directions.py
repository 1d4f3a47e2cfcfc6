"""Directions that shift the mixture toward a concept, so that the concept appears in the next token.

A label describes its own token, so an active concept says what that token is, not what comes next: adding a concept's own
vector does not make the model write it. Steering needs the shift v of the mixture W_compress @ TopK(z) that makes the concept
likelier at the next token and changes the model's predictions least. Let y = 1 if the concept is among the strongest of the
next token, s = d log p(next token) / d mixture, and F = E[s s^T] (the Fisher information):

    d E[y] / d v = E[s y] = g            (to first order)
    KL(shifted || unshifted) = v^T F v / 2   (to second order)
    v = F^-1 g, scaled to v^T F v = 1

A small strength s therefore changes the next-token distribution by about s^2 / 2 nats per token for every concept. One
backward pass over some text gives s, and with it the directions toward all concepts.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator

import torch
from jaxtyping import Float
from torch import Tensor, nn

from cocomix.base.errors import CocomixError
from cocomix.data.token_dataset import TokenDataset
from cocomix.mixers.edits import ConceptEdit, concept_edits
from cocomix.modeling.model import CoCoMixForCausalLM

# Shapes: B batch, T tokens, K active concepts, C concepts, D width, N tokens.

BATCH_SIZE = 16
#: How many of a token's active concepts count as what the token is about: the default number of labels per token.
NUM_STRONGEST = 4
#: Added to F, in units of its mean eigenvalue: text gives more samples of some directions than of others.
RIDGE = 1.0


class _Leaf(ConceptEdit):
    """Makes the mixture a leaf of the graph and keeps the strongest concepts; changes no value."""

    def edit_active(self, indices: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        self.strongest = indices[..., :NUM_STRONGEST]  # TopK returns the strongest first
        return indices, values

    def edit_vectors(self, vectors: Tensor) -> Tensor:
        self.vectors = vectors.detach().requires_grad_(True)
        return self.vectors


@contextlib.contextmanager
def _frozen(model: nn.Module) -> Iterator[None]:
    """Gradients of the mixture alone: those of weights, and what they need kept, would take most of the time and memory."""
    learning = [weight for weight in model.parameters() if weight.requires_grad]
    for weight in learning:
        weight.requires_grad_(False)
    try:
        yield
    finally:
        for weight in learning:
            weight.requires_grad_(True)


@torch.enable_grad()
def concept_directions(
    model: CoCoMixForCausalLM, dataset: TokenDataset, max_windows: int | None = None, *, description: str | None = None
) -> Float[Tensor, "C D"]:
    """Directions toward all concepts of a model; 0 for a concept that is never among the strongest of a token.

    Args:
        model: in evaluation mode, with concepts mixed in.
        dataset: text to read.
        max_windows: how many evenly spaced windows to read; None: all.
        description: name of the work in a progress line; None: no line.

    Raises:
        CocomixError: the model does not mix its concepts in, or they change nothing.
    """
    if model.config.mixer.unsteerable:
        raise CocomixError(f"the model {model.config.mixer.unsteerable}: there are no directions toward concepts")
    C, D = model.config.num_concepts, model.config.hidden_size
    sums = torch.zeros(C, D, device=model.device)
    counts = torch.zeros(C, dtype=torch.long, device=model.device)
    total = torch.zeros(D, dtype=torch.float64, device=model.device)
    products = torch.zeros(D, D, dtype=torch.float64, device=model.device)
    N = 0
    leaf = _Leaf()
    for windows in dataset.batches(BATCH_SIZE, max_windows, description=description):
        inputs = {name: tensor.to(model.device) for name, tensor in windows.inputs().items()}
        with _frozen(model), concept_edits(model, leaf):
            output = model(**inputs, labels=inputs["input_ids"], use_cache=False, return_logits=False)
        (gradients,) = torch.autograd.grad(-output.lm_loss_sum, leaf.vectors)
        scores = gradients[:, :-1].flatten(0, 1).float()  # (B * (T - 1), D)
        following = leaf.strongest[:, 1:].flatten(0, 1)  # (B * (T - 1), A)
        for concepts in following.unbind(1):
            sums.index_add_(0, concepts, scores)
        counts += torch.bincount(following.flatten(), minlength=C)
        wide = scores.double()
        total += wide.sum(0)
        products += wide.t() @ wide
        N += len(scores)
    mean = total / N
    information = products / N - torch.outer(mean, mean)
    if not 0 < float(information.trace()) < math.inf:
        raise CocomixError(
            "there are no directions toward concepts: what is mixed in does not change the model's next token, or its logits "
            "are not finite"
        )
    gains = sums.double() / counts.clamp(min=1).unsqueeze(-1) - mean
    return _natural(gains, information, counts > 0).float().cpu()


def _natural(gains: Float[Tensor, "C D"], information: Float[Tensor, "D D"], is_known: Tensor) -> Float[Tensor, "C D"]:
    """F^-1 g, scaled to v^T F v = 1, for each row; 0 for rows that are not known."""
    D = len(information)
    ridge = RIDGE * information.trace() / D * torch.eye(D, dtype=information.dtype, device=information.device)
    directions = torch.linalg.solve(information + ridge, gains.t()).t()
    lengths = torch.einsum("cd,de,ce->c", directions, information, directions).clamp(min=1e-30).sqrt()
    return torch.where(is_known.unsqueeze(-1), directions / lengths.unsqueeze(-1), 0.0)
