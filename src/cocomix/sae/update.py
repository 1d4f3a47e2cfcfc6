"""One optimizer step of one dictionary in training, with Adam, after Gao et al. (arXiv 2406.04093).

    loss = |x - x_hat|^2 / |x - mean(x)|^2  +  1/32 |e - e_hat|^2 / |e - mean(e)|^2      sums over an update's tokens

where e = x - x_hat, without a gradient, and e_hat is the best that the k_aux most excited *dead* latents make of it: they
learn what the living ones leave over, until they are alive again. Decoder rows stay at unit norm; the decoder's bias starts
at the geometric median of the data. Which latents make x_hat is the activation's own rule (`rules.py`).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from cocomix.base.checkpoints import Checkpoint, restore_state, training_state
from cocomix.base.devices import Machine
from cocomix.sae.chosen import Encoded
from cocomix.sae.model import SparseAutoencoder
from cocomix.sae.rules import RULES

# Shapes: N tokens, D width of the teacher, C latents.

AUXILIARY_LOSS_WEIGHT = 1 / 32


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
        k: latents active for a token, or on average.
        dead_after_tokens: a latent that was active at none of this many tokens is dead.
        num_auxiliary_latents: k_aux, dead latents that the auxiliary loss uses for a token.
        machine: the dictionary's device, and the precision of its products; None: a CPU in float32.
    """

    def __init__(
        self,
        sae: SparseAutoencoder,
        k: int,
        *,
        dead_after_tokens: int,
        num_auxiliary_latents: int,
        machine: Machine | None = None,
    ) -> None:
        self.sae, self.k, self.machine = sae, k, machine or Machine()
        self.rule = RULES[sae.config.activation](sae, k)
        self.dead_after_tokens = dead_after_tokens
        self.num_auxiliary_latents = num_auxiliary_latents
        self.tokens_since_active = torch.zeros(sae.config.num_latents, dtype=torch.long, device=self.machine.device)
        # As Gao et al.: an epsilon this small, because the gradients of a rare latent are.
        self.optimizer = torch.optim.Adam(sae.parameters(), lr=0.0, betas=(0.9, 0.999), eps=6.25e-10, fused=True)

    @property
    def num_dead(self) -> int:
        return int(self._dead().sum())

    @torch.no_grad()
    def start(self, h: Float[Tensor, "N D"], tokens_per_update: int) -> None:
        """Start the decoder's bias at the geometric median of some residual streams, and what the rule starts from data."""
        x, _, _ = self.sae.normalize(h)
        self.sae.decoder_bias.copy_(geometric_median(x))
        self.rule.start(Encoded(self.sae, x[:tokens_per_update] - self.sae.decoder_bias))

    def update(
        self, h: Float[Tensor, "N D"], tokens_per_update: int, learning_rate: float, progress: float = 1.0
    ) -> UpdateStats:
        """One pass over some residual streams, in optimizer steps on equal parts.

        Args:
            h: residual streams, at least two.
            tokens_per_update: the most tokens of a part.
            learning_rate: Adam's.
            progress: the part of the training that is done.
        """
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate
        num_updates = -(-len(h) // tokens_per_update)
        updates = [self._update(part, progress) for part in h.tensor_split(num_updates)]
        fvu, l0 = torch.stack([torch.stack(update) for update in updates]).mean(0).tolist()
        return UpdateStats(fvu, l0)

    def state(self) -> dict[str, Tensor]:
        """All that further updates depend on."""
        return training_state(self.sae, self.optimizer) | self._counters()

    def restore(self, checkpoint: Checkpoint) -> None:
        """Back to a `state` that was saved."""
        restore_state(self.sae, self.optimizer, checkpoint, self._counters())

    def _counters(self) -> dict[str, Tensor]:
        """What no gradient changes."""
        return {"tokens_since_active": self.tokens_since_active} | dict(self.sae.named_buffers())

    def _dead(self) -> Bool[Tensor, " C"]:
        return self.tokens_since_active > self.dead_after_tokens

    def _update(self, h: Float[Tensor, "N D"], progress: float) -> tuple[Tensor, Tensor]:
        """One optimizer step; returns FVU and L0 before it."""
        with self.machine.products():  # anew for each step: autocast keeps rounded weights until it is left
            fvu, auxiliary, penalty, l0 = self._losses(h, progress)
        (fvu + AUXILIARY_LOSS_WEIGHT * auxiliary + penalty).backward()
        self._project_decoder_gradient()
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.sae.normalize_decoder()
        self.rule.project()
        return fvu.detach(), l0

    def _losses(self, h: Float[Tensor, "N D"], progress: float) -> tuple[Tensor, Tensor, Tensor | float, Tensor]:
        """FVU, auxiliary loss, the rule's penalty and L0 of some tokens, which also count as heard or silent."""
        sae = self.sae
        x, _, _ = sae.normalize(h)
        encoded = Encoded(sae, x - sae.decoder_bias)
        found = self.rule.activate(encoded, progress)
        error = x - sae.sum_rows(found.choice.indices, found.values, found.choice.offsets) - sae.decoder_bias
        fvu = error.pow(2).sum() / (x - x.mean(0)).pow(2).sum()
        active = found.values > 0
        self.tokens_since_active += len(h)
        self.tokens_since_active[found.choice.indices[active]] = 0
        auxiliary = auxiliary_loss(sae, encoded, error, self._dead(), self.num_auxiliary_latents)
        return fvu, auxiliary, found.penalty, active.sum() / len(h)

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
    choice = encoded.best(num_latents, dead)
    left = error - sae.sum_rows(choice.indices, encoded.values(choice).relu(), choice.offsets)
    return left.pow(2).sum() / (error - error.mean(0)).pow(2).sum()


def geometric_median(x: Float[Tensor, "N D"], num_iterations: int = 20) -> Float[Tensor, " D"]:
    """The point with the least summed distance to all rows (Weiszfeld's algorithm)."""
    median = x.mean(0)
    for _ in range(num_iterations):
        weights = 1 / (x - median).norm(dim=-1, keepdim=True).clamp(min=1e-6)
        median = (weights * x).sum(0) / weights.sum()
    return median
