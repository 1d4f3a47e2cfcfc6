"""How a dictionary's latents are chosen while it trains: one rule for each activation, which owns all that is its own.

topk        the k largest pre-activations of each token (Gao et al., arXiv 2406.04093)
batchtopk   the k N largest of N tokens; one threshold for use afterwards (Bussmann et al., arXiv 2412.06410)
jumprelu    all above a threshold each, which is learned (Rajamanoharan et al., arXiv 2407.14435)
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from cocomix.sae.chosen import Choice, Encoded
from cocomix.sae.model import SparseAutoencoder

# Shapes: N tokens, C latents, M chosen latents of all tokens together.


@dataclass(frozen=True)
class Activations:
    """Activations of N tokens, as an update's loss reads them."""

    choice: Choice
    values: Float[Tensor, " M"]
    """With gradients; some may be 0."""
    penalty: Tensor | float = 0.0
    """What the rule adds to the loss."""


class TopK:
    """The k largest of each token, after a ReLU. Other rules override what they do otherwise.

    Args:
        sae: the dictionary in training.
        k: latents active for a token, or on average.
    """

    keeps_k: ClassVar[bool] = True
    """Whether the finished dictionary's configuration has k as its `num_active_latents`."""

    def __init__(self, sae: SparseAutoencoder, k: int) -> None:
        self.sae, self.k = sae, k

    def start(self, encoded: Encoded) -> None:
        """Start what belongs to the rule alone, from some tokens."""

    def activate(self, encoded: Encoded, progress: float) -> Activations:
        """Activations of an update's tokens; `progress` is the part of the training that is done."""
        choice = encoded.best(self.k)
        return Activations(choice, encoded.values(choice).relu())

    def project(self) -> None:
        """Bring what belongs to the rule alone back to where it may be, after an optimizer step."""


class BatchTopK(TopK):
    """The k N largest of all N tokens of an update, after a ReLU: tokens that need more latents get more.

    In use there is no batch, and a latent is active above one threshold: the mean, over updates, of the smallest activation
    that was chosen, as in the paper. It is a running mean, since only the last updates are of the finished weights.
    """

    #: Weight of an update in the running mean.
    RATE = 0.05

    def start(self, encoded: Encoded) -> None:
        self.threshold.detach().copy_(self._choose(encoded)[1])

    def activate(self, encoded: Encoded, progress: float) -> Activations:
        choice, least = self._choose(encoded)
        self.threshold.lerp_(least, self.RATE)
        return Activations(choice, encoded.values(choice).relu())

    @property
    def threshold(self) -> Tensor:
        assert self.sae.threshold is not None
        return self.sae.threshold

    def _choose(self, encoded: Encoded) -> tuple[Choice, Tensor]:
        """The latents, and the smallest of their activations."""
        num_tokens, C = encoded.z.shape
        best = encoded.z.flatten().topk(self.k * num_tokens, sorted=False)
        places = best.indices.sort().values
        return Choice.of(places // C, places % C, num_tokens), best.values.min().relu()


class JumpReLU(BatchTopK):
    """c = z where z > theta, with a threshold theta >= 0 for each latent.

    Neither c nor the number of active latents has a useful derivative by theta, so that both get the paper's straight-through
    ones (section 4), with a rectangle of width epsilon as kernel:

        dc/dtheta = -theta / epsilon [|z - theta| < epsilon / 2]        dc/dz = [z > theta]
        dL0/dtheta = -1 / epsilon [|z - theta| < epsilon / 2]

    The penalty (L0 / k - 1)^2, with the mean L0 of an update, makes k the mean number of active latents; the paper's own, a
    multiple of L0, has a coefficient to look for. Its weight rises over the first part of the training. Thresholds start at
    BatchTopK's.
    """

    keeps_k = False
    #: epsilon. Inputs have unit variance, and so have pre-activations at the start.
    BANDWIDTH = 1.0
    #: Part of the training over which the penalty's weight rises to 1.
    WARMUP = 0.1

    def activate(self, encoded: Encoded, progress: float) -> Activations:
        # Those just below their threshold are 0, and have a derivative by it.
        near = encoded.z > self.threshold.detach() - self.BANDWIDTH / 2
        tokens, indices = near.nonzero(as_tuple=True)
        choice = Choice.of(tokens, indices, len(near))
        z, thresholds = encoded.values(choice), self.threshold[choice.indices]
        values, is_active = _Jump.apply(z, thresholds, self.BANDWIDTH)  # type: ignore[no-untyped-call]
        excess = is_active.sum() / (self.k * len(near)) - 1
        return Activations(choice, values, min(1.0, progress / self.WARMUP) * excess.square())

    def project(self) -> None:
        self.threshold.detach().clamp_(min=0)


class _Jump(torch.autograd.Function):
    """Activations, and 1 for each active one, with the derivatives of `JumpReLU`."""

    @staticmethod
    def forward(ctx: Any, z: Tensor, threshold: Tensor, bandwidth: float) -> tuple[Tensor, Tensor]:
        ctx.save_for_backward(z, threshold)
        ctx.bandwidth = bandwidth
        is_active = (z > threshold).to(z)
        return z * is_active, is_active

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        z, threshold = ctx.saved_tensors
        by_value, by_number = grads
        kernel = ((z - threshold).abs() < ctx.bandwidth / 2) / ctx.bandwidth
        return by_value * (z > threshold), -kernel * (threshold * by_value + by_number), None


RULES: dict[str, type[TopK]] = {"topk": TopK, "batchtopk": BatchTopK, "jumprelu": JumpReLU}
