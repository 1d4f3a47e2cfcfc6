"""Which of a token's latents mattered for the prediction: attribution, and labels chosen by it.

    a_i = c_i * d(loss)/d(c_i) = c_i * std * (g . W_dec[i])        g = d(loss)/dh at the hook (`gradients.py`)

The labels of a token are the latents of the A largest scores; the score is +a, -a, |a| or c itself. Labels are a pure
function of a window's tokens and the settings: neither the batch nor the shard a window comes in has a say.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

import torch
import tyro
from jaxtyping import Float, Int64
from torch import Tensor
from transformers import PreTrainedModel

from cocomix.base.errors import CocomixError, require_at_least
from cocomix.base.labels import IGNORED_LABEL
from cocomix.concepts.controls import DERIVED_CONTROLS, Control, random_dictionary
from cocomix.concepts.gradients import AttributionLoss, AttributionPoint, residual_gradient
from cocomix.concepts.sae import Latents, SparseAutoencoder
from cocomix.concepts.teacher import Teacher

# Shapes: B batch, T tokens, N = B * T, D width of the teacher, C latents, K active latents, A labels a token.

AttributionValue = Literal["activation", "pre_activation"]
AttributionSign = Literal["raises_loss", "lowers_loss", "magnitude"]
LabelCriterion = Literal["attribution", "activation_value"]

#: Elements of one chunk's scores where all C latents have one: 64 MB in float32.
CHUNK_ELEMENTS = 2**24


@dataclass(frozen=True)
class AttributionConfig:
    """How labels are chosen. The paper's released code: attribution, original, all_future, activation, raises_loss."""

    criterion: LabelCriterion = "activation_value"
    """Largest score of a = c * d(loss)/dc (the paper's), or largest c (its ablation), which leaves the next four unused."""
    point: AttributionPoint = "original"
    """Gradient at h_t (the released code), or at Dec(c_t) in place of h_t alone (the paper's text)."""
    loss: AttributionLoss = "all_future"
    """Gradient of the sum of -log p(x_s) over all s > t (the released code), or of s = t + 1 only (the paper's text).
    With point `reconstruction`, `all_future` takes one pass a position: T / 2 times the time."""
    value: AttributionValue = "activation"
    """a_i = c_i * d(loss)/dc_i of the active latents (the released code), or z_i * d(loss)/dc_i of all C latents with the
    encoder's output z before its activation (the paper's first version)."""
    sign: AttributionSign = "raises_loss"
    """Top of +a (paper and released code: their presence makes the true token less likely), of -a, or of |a|."""
    num_labels: Annotated[int, tyro.conf.arg(aliases=("--num-labels",))] = 4
    """A, labels a token (the paper's K_attr)."""
    control: Control = "none"
    """What the labels are to be compared with. random: the same labels of a fixed random dictionary. shuffled: true labels,
    permuted over the labelled positions of each window. frequency: concepts drawn from the histogram of the true labels."""
    seed: int = 0
    """Seed of the control."""

    def __post_init__(self) -> None:
        require_at_least(1, self, "num_labels")
        require_at_least(0, self, "seed")


@dataclass(frozen=True)
class ScoredLabels:
    """Labels of some windows, best first, and the scores that ranked them."""

    labels: Int64[Tensor, "B T A"]
    """-100 at the last position (it has no next token) and where fewer than A latents have a score other than zero."""
    scores: Float[Tensor, "B T A"]
    """+a, -a or |a| in nats by the sign, or c; zero where there is no label."""


class ConceptExtractor:
    """Concept labels of token windows.

    Args:
        model: frozen teacher.
        sae: its sparse autoencoder.
        layer: 0-based block of the teacher after which the SAE reads.
        config: how labels are chosen.
    """

    def __init__(
        self, model: PreTrainedModel, sae: SparseAutoencoder, layer: int, config: AttributionConfig | None = None
    ) -> None:
        self.teacher = Teacher(model, layer)
        self.config = config or AttributionConfig()
        if sae.config.hidden_size != model.config.hidden_size:
            raise CocomixError(
                f"the sparse autoencoder reads width {sae.config.hidden_size}, the teacher has width "
                f"{model.config.hidden_size}"
            )
        self._of_all = self.config.criterion == "attribution" and self.config.value == "pre_activation"
        num_candidates = sae.config.num_latents if self._of_all else sae.config.max_active_latents
        if self.config.num_labels > num_candidates:
            raise CocomixError(
                f"num_labels is {self.config.num_labels}, more than the {num_candidates} "
                f"{'' if self._of_all else 'active '}latents of the sparse autoencoder"
            )
        if self.config.control in DERIVED_CONTROLS:
            raise CocomixError(
                f"the control {self.config.control!r} is made from a finished concept dataset, not from a teacher; use "
                "`cocomix extract --labels`"
            )
        self.sae = random_dictionary(sae, self.config.seed) if self.config.control == "random" else sae

    def __call__(
        self, input_ids: Int64[Tensor, "B T"], position_ids: Int64[Tensor, "B T"] | None = None
    ) -> Int64[Tensor, "B T A"]:
        """Labels, best first; -100 at the last position (it has no next token) and where too few latents score."""
        return self.scored(input_ids, position_ids).labels

    def scored(self, input_ids: Int64[Tensor, "B T"], position_ids: Int64[Tensor, "B T"] | None = None) -> ScoredLabels:
        """Labels and their scores; `position_ids` as `Teacher.residuals` takes them."""
        A = self.config.num_labels
        h = self.teacher.residual(input_ids, position_ids)
        with torch.no_grad():
            latents = self.sae.encode(h)
        if self._of_all:
            scores, indices = self._top_of_all(h, latents, self._gradient(input_ids, h, latents, position_ids))
        else:
            latents = latents.padded(A)
            scores, ranked = self._active_scores(input_ids, h, latents, position_ids).topk(A, dim=-1)
            indices = latents.indices.gather(-1, ranked)
        invalid = (scores == -torch.inf).any(-1, keepdim=True)  # fewer than A eligible latents
        invalid[:, -1] = True
        return ScoredLabels(indices.masked_fill(invalid, IGNORED_LABEL), scores.masked_fill(invalid, 0.0))

    def attribution(
        self,
        input_ids: Int64[Tensor, "B T"],
        h: Float[Tensor, "B T D"],
        latents: Latents,
        position_ids: Int64[Tensor, "B T"] | None = None,
    ) -> Float[Tensor, "B T K"]:
        """a = c * d(loss)/dc of the active latents, in nats; zero at the last position."""
        gradient = self._gradient(input_ids, h, latents, position_ids)
        # d h_hat / d c_i = std * W_dec[i]: the decoder's own backward multiplies by it without gathering [B, T, K, D].
        c = latents.values.detach().requires_grad_(True)
        h_hat = self.sae.decode(Latents(latents.indices, c, latents.mean, latents.std))
        return latents.values * torch.autograd.grad(h_hat, c, gradient)[0]

    def _gradient(self, input_ids: Tensor, h: Tensor, latents: Latents, position_ids: Tensor | None) -> Tensor:
        """d(loss)/dh at the configured point."""
        replacement = None
        if self.config.point == "reconstruction":
            with torch.no_grad():
                replacement = self.sae.decode(latents)
        return residual_gradient(
            self.teacher, input_ids, h, loss=self.config.loss, replacement=replacement, position_ids=position_ids
        )

    def _active_scores(self, input_ids: Tensor, h: Tensor, latents: Latents, position_ids: Tensor | None) -> Tensor:
        """[B, T, K] scores of the active latents, -inf where a latent says nothing."""
        if self.config.criterion == "activation_value":
            return latents.values.masked_fill(latents.values == 0, -torch.inf)
        return self._score(self.attribution(input_ids, h, latents, position_ids))

    def _score(self, a: Tensor) -> Tensor:
        """What labels are the top of. A latent without attribution (inactive, or without gradient) says nothing."""
        by_sign = {"raises_loss": a, "lowers_loss": -a, "magnitude": a.abs()}[self.config.sign]
        return by_sign.masked_fill(a == 0, -torch.inf)

    @torch.no_grad()
    def _top_of_all(self, h: Tensor, latents: Latents, gradient: Tensor) -> tuple[Tensor, Tensor]:
        """Scores and indices [B, T, A] of the best of all C latents: z_i * std * (g . W_dec[i]), in chunks of positions."""
        sae, A = self.sae, self.config.num_labels
        x, _, std = sae.encoder_input(h)
        rows, directions = x.flatten(0, 1), (std * gradient).flatten(0, 1)
        scores = rows.new_empty(len(rows), A)
        indices = torch.empty(len(rows), A, dtype=torch.long, device=h.device)
        size = max(1, CHUNK_ELEMENTS // sae.config.num_latents)
        for start in range(0, len(rows), size):
            part = slice(start, start + size)
            z = torch.addmm(sae.encoder_bias, rows[part], sae.encoder_weight.t())  # (n, C)
            scores[part], indices[part] = self._score(z * (directions[part] @ sae.decoder_weight.t())).topk(A, dim=-1)
        shape = (*h.shape[:-1], A)
        return scores.view(shape), indices.view(shape)
