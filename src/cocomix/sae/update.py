"""One optimizer step of one dictionary in training: a TopK autoencoder with Adam, after Gao et al. (arXiv 2406.04093).

    loss = |x - x_hat|^2 / |x - mean(x)|^2  +  1/32 |e - e_hat|^2 / |e - mean(e)|^2      sums over an update's tokens

where e = x - x_hat, without a gradient, and e_hat is the best that the k_aux most excited *dead* latents make of it: they
learn what the living ones leave over, until they are alive again. Decoder rows stay at unit norm; the decoder's bias starts
at the geometric median of the data.

An update holds z = W_enc (x - b_dec) + b_enc, [N, C]: at 1,024 tokens and C = 131,072 it is 0.5 GB, and fewer tokens an
update make it smaller. Nothing larger is held, and the gradient of z is never formed: the loss reads K of a token's C
latents, whose gradients are sums of gathered rows.

    z_k = W_k x + b_k,   k in I        dL/dx = sum_k g_k W_k,   dL/dW_k = sum over tokens of g_k x,   dL/db_k = sum of g_k
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor
from torch.nn import functional as F

from cocomix.base.checkpoints import Checkpoint, restore_state, training_state
from cocomix.base.devices import Machine
from cocomix.sae.model import SparseAutoencoder

# Shapes: N tokens, D width of the teacher, C latents, K chosen latents.

AUXILIARY_LOSS_WEIGHT = 1 / 32


class _Chosen(torch.autograd.Function):
    """Columns of the pre-activations, as a function of what they were made from."""

    @staticmethod
    def forward(ctx: Any, z: Tensor, indices: Tensor, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        ctx.save_for_backward(indices, x, weight, bias)
        return z.gather(-1, indices)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        indices, x, weight, bias = ctx.saved_tensors
        (grad,) = grads
        leaf = weight.detach().requires_grad_(True)
        with torch.enable_grad():
            grad_x = F.embedding_bag(indices, leaf, per_sample_weights=grad, mode="sum")
        # The same rows, weighted alike: what x contributes to each is the derivative of that sum.
        (grad_weight,) = torch.autograd.grad(grad_x, leaf, x)
        grad_bias = torch.zeros_like(bias).index_add_(0, indices.flatten(), grad.flatten())
        return None, None, grad_x.detach(), grad_weight, grad_bias


def chosen_pre_activations(
    z: Float[Tensor, "N C"],
    indices: Int64[Tensor, "N K"],
    x: Float[Tensor, "N D"],
    weight: Float[Tensor, "C D"],
    bias: Float[Tensor, " C"],
) -> Float[Tensor, "N K"]:
    """The pre-activations at `indices`, with gradients for x, weight and bias.

    Args:
        z: all of them, x @ weight.T + bias, without a graph.
        indices: latents of each token, none of them twice.
        x: what the encoder reads.
        weight: of the encoder.
        bias: of the encoder.
    """
    chosen: Tensor = _Chosen.apply(z, indices, x, weight, bias)  # type: ignore[no-untyped-call]
    return chosen


class Encoded:
    """Pre-activations of some tokens.

    Args:
        sae: the dictionary.
        x: what its encoder reads, [N, D].
    """

    def __init__(self, sae: SparseAutoencoder, x: Float[Tensor, "N D"]) -> None:
        self.sae, self.x = sae, x
        with torch.no_grad():
            self.z = F.linear(x, sae.encoder_weight, sae.encoder_bias).to(x.dtype)  # (N, C)

    def best(self, num_latents: int, among: Bool[Tensor, " C"] | None = None) -> tuple[Tensor, Tensor]:
        """Values, with gradients, and indices of the largest of a token: of all latents, or among some."""
        z = self.z if among is None else self.z.masked_fill(~among, -torch.inf)
        indices = z.topk(num_latents, dim=-1).indices
        sae = self.sae
        return chosen_pre_activations(self.z, indices, self.x, sae.encoder_weight, sae.encoder_bias), indices


@dataclass(frozen=True)
class UpdateStats:
    """What a progress line shows of some updates."""

    fvu: float
    """Fraction of the variance left unexplained, before the updates."""
    l0: float
    """Mean number of latents with a positive activation."""


class SaeUpdater:
    """Weights, Adam's moments, and for how long each latent has been silent.

    Args:
        sae: the dictionary, as initialised; trained in place.
        dead_after_tokens: a latent that was active at none of this many tokens is dead.
        num_auxiliary_latents: k_aux, dead latents that the auxiliary loss uses for a token.
        machine: the dictionary's device, and the precision of its products; None: a CPU in float32.
    """

    def __init__(
        self,
        sae: SparseAutoencoder,
        *,
        dead_after_tokens: int,
        num_auxiliary_latents: int,
        machine: Machine | None = None,
    ) -> None:
        assert sae.config.num_active_latents is not None, "only TopK dictionaries are trained"
        self.sae, self.k, self.machine = sae, sae.config.num_active_latents, machine or Machine()
        self.dead_after_tokens = dead_after_tokens
        self.num_auxiliary_latents = num_auxiliary_latents
        self.tokens_since_active = torch.zeros(sae.config.num_latents, dtype=torch.long, device=self.machine.device)
        # As Gao et al.: an epsilon this small, because the gradients of a rare latent are.
        self.optimizer = torch.optim.Adam(sae.parameters(), lr=0.0, betas=(0.9, 0.999), eps=6.25e-10, fused=True)

    @property
    def num_dead(self) -> int:
        return int(self._dead().sum())

    @torch.no_grad()
    def start_bias(self, h: Float[Tensor, "N D"]) -> None:
        """Start the decoder's bias at the geometric median of some residual streams."""
        x, _, _ = self.sae.normalize(h)
        self.sae.decoder_bias.copy_(geometric_median(x))

    def update(self, h: Float[Tensor, "N D"], tokens_per_update: int, learning_rate: float) -> UpdateStats:
        """One pass over some residual streams, an optimizer step for each `tokens_per_update` of them."""
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate
        updates = [self._update(part) for part in h.split(tokens_per_update)]
        fvu, l0 = torch.stack([torch.stack(update) for update in updates]).mean(0).tolist()
        return UpdateStats(fvu, l0)

    def state(self) -> dict[str, Tensor]:
        """All that further updates depend on."""
        return training_state(self.sae, self.optimizer) | {"tokens_since_active": self.tokens_since_active}

    def restore(self, checkpoint: Checkpoint) -> None:
        """Back to a `state` that was saved."""
        restore_state(self.sae, self.optimizer, checkpoint, {"tokens_since_active": self.tokens_since_active})

    def _dead(self) -> Bool[Tensor, " C"]:
        return self.tokens_since_active > self.dead_after_tokens

    def _update(self, h: Float[Tensor, "N D"]) -> tuple[Tensor, Tensor]:
        """One optimizer step; returns FVU and L0 before it."""
        with self.machine.products():  # anew for each step: autocast keeps rounded weights until it is left
            fvu, auxiliary, l0 = self._losses(h)
        (fvu + AUXILIARY_LOSS_WEIGHT * auxiliary).backward()
        self._project_decoder_gradient()
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.sae.normalize_decoder()
        return fvu.detach(), l0

    def _losses(self, h: Float[Tensor, "N D"]) -> tuple[Tensor, Tensor, Tensor]:
        """FVU, auxiliary loss and L0 of some tokens, which also count as heard or silent."""
        sae = self.sae
        x, _, _ = sae.normalize(h)
        encoded = Encoded(sae, x - sae.decoder_bias)
        values, indices = encoded.best(self.k)
        error = x - sae.sum_rows(indices, values.relu()) - sae.decoder_bias
        fvu = error.pow(2).sum() / (x - x.mean(0)).pow(2).sum()
        active = values > 0
        self.tokens_since_active += len(h)
        self.tokens_since_active[indices[active]] = 0
        auxiliary = auxiliary_loss(sae, encoded, error, self._dead(), self.num_auxiliary_latents)
        return fvu, auxiliary, active.sum(-1).float().mean()

    @torch.no_grad()
    def _project_decoder_gradient(self) -> None:
        """Remove what would only change the length of a decoder row: rows are kept at unit norm."""
        weight, grad = self.sae.decoder_weight, self.sae.decoder_weight.grad
        assert grad is not None
        grad -= (grad * weight).sum(-1, keepdim=True) * weight


def auxiliary_loss(
    sae: SparseAutoencoder,
    encoded: Encoded,
    error: Float[Tensor, "N D"],
    dead: Bool[Tensor, " C"],
    num_latents: int,
) -> Float[Tensor, ""]:
    """AuxK (Gao et al., appendix A.2): how much of the error's variance the best dead latents leave; 0 if none is dead.

    Args:
        sae: whose decoder rows the dead latents use.
        encoded: the tokens.
        error: x - x_hat; no gradient reaches it.
        dead: which latents are dead.
        num_latents: k_aux, or as many as are dead.
    """
    num_latents = min(num_latents, int(dead.sum()))
    if num_latents == 0:
        return error.new_zeros(())
    error = error.detach()
    values, indices = encoded.best(num_latents, dead)
    left = error - sae.sum_rows(indices, values.relu())
    return left.pow(2).sum() / (error - error.mean(0)).pow(2).sum()


def geometric_median(x: Float[Tensor, "N D"], num_iterations: int = 20) -> Float[Tensor, " D"]:
    """The point with the least summed distance to all rows (Weiszfeld's algorithm)."""
    median = x.mean(0)
    for _ in range(num_iterations):
        weights = 1 / (x - median).norm(dim=-1, keepdim=True).clamp(min=1e-6)
        median = (weights * x).sum(0) / weights.sum()
    return median
