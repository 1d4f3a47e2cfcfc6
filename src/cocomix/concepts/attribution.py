"""Which of a token's active latents mattered for the prediction: attribution, and labels chosen by it.

    a_i = c_i * d(loss)/d(c_i) = c_i * std * (grad_h . W_dec[i])

for the k active latents only, with one `autograd.grad` whose only leaf is the residual stream: no parameter gradient is
allocated and no graph exists below the hook.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float, Int64
from torch import Tensor
from transformers import DynamicCache, PreTrainedModel

from cocomix.base.errors import CocomixError
from cocomix.base.labels import IGNORED_LABEL
from cocomix.concepts.sae import Latents, SparseAutoencoder
from cocomix.concepts.teacher import Teacher
from cocomix.modeling.losses import next_token_losses

# Shapes: B batch, T tokens, D width of the teacher, C latents, K active latents, A labels a token, V vocabulary.

AttributionPoint = Literal["original", "reconstruction"]
AttributionLoss = Literal["all_future", "next_token"]
AttributionSign = Literal["raises_loss", "lowers_loss", "magnitude"]
LabelCriterion = Literal["attribution", "activation_value"]


@dataclass(frozen=True)
class AttributionConfig:
    """How labels are chosen. The paper's released code: attribution, original, all_future, raises_loss."""

    criterion: LabelCriterion = "activation_value"
    """Largest attribution (the paper's), or largest activation c (its ablation), which leaves the next three unused."""
    point: AttributionPoint = "original"
    """Gradient at h_t (the released code), or at Dec(c_t) in place of h_t alone (the paper's text)."""
    loss: AttributionLoss = "all_future"
    """Gradient of the summed loss of all later tokens (the released code), or of token t + 1 only (the paper's text)."""
    sign: AttributionSign = "raises_loss"
    """Top of +a (paper and released code), of -a, or of |a|."""
    num_labels: int = 4
    """A, labels a token (the paper's K_attr)."""

    def __post_init__(self) -> None:
        if self.num_labels < 1:
            raise CocomixError(f"num_labels is {self.num_labels}; it must be at least 1")
        if self.point == "reconstruction" and self.loss == "all_future":
            raise CocomixError(
                "attribution point 'reconstruction' needs loss 'next_token': with all later tokens in the loss, replacing "
                "one position alone would take one pass a position"
            )


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
        self.sae = sae
        self.config = config or AttributionConfig()
        if sae.config.hidden_size != model.config.hidden_size:
            raise CocomixError(
                f"the sparse autoencoder reads width {sae.config.hidden_size}, the teacher has width "
                f"{model.config.hidden_size}"
            )
        if self.config.num_labels > sae.config.max_active_latents:
            raise CocomixError(
                f"num_labels is {self.config.num_labels}, more than the {sae.config.max_active_latents} active latents of "
                "the sparse autoencoder"
            )

    def __call__(self, input_ids: Int64[Tensor, "B T"]) -> Int64[Tensor, "B T A"]:
        """Labels, best first; -100 at the last position (it has no next token) and where too few latents score."""
        h = self.teacher.residual(input_ids)
        with torch.no_grad():
            latents = self.sae.encode(h).padded(self.config.num_labels)
        if self.config.criterion == "activation_value":
            scores = eligible = latents.values
        else:
            scores = eligible = self.attribution(input_ids, h, latents)
            if self.config.sign == "lowers_loss":
                scores = -scores
            elif self.config.sign == "magnitude":
                scores = scores.abs()
        A = self.config.num_labels
        # Latents with a score of exactly zero (inactive, or without gradient) say nothing and are taken last.
        ranked = scores.masked_fill(eligible == 0, -torch.inf).topk(A, dim=-1).indices
        labels = latents.indices.gather(-1, ranked)
        valid = (eligible != 0).sum(-1) >= A
        valid[:, -1] = False
        return labels.masked_fill(~valid.unsqueeze(-1), IGNORED_LABEL)

    def attribution(
        self, input_ids: Int64[Tensor, "B T"], h: Float[Tensor, "B T D"], latents: Latents
    ) -> Float[Tensor, "B T K"]:
        """a = c * d(loss)/dc of the active latents, in nats; at the last position zero for `next_token`."""
        if self.config.loss == "all_future":
            grad_h = self._gradient_all_future(input_ids, h)
        else:
            grad_h = self._gradient_next_token(input_ids, h, latents)
        # d h_hat / d c_i = std * W_dec[i]
        directions = self.sae.decoder_weight[latents.indices]  # (B, T, K, D)
        return latents.values * latents.std * torch.einsum("btkd,btd->btk", directions, grad_h)

    def _gradient_all_future(self, input_ids: Tensor, h: Tensor) -> Tensor:
        """d(sum of all losses)/dh: one plain backward."""
        leaf = h.detach().requires_grad_(True)
        return torch.autograd.grad(next_token_losses(self.teacher.logits(leaf), input_ids).sum(), leaf)[0]

    def _gradient_next_token(self, input_ids: Tensor, h: Tensor, latents: Latents) -> Tensor:
        """d(loss of token t + 1)/dh_t alone.

        Keys and values of the unperturbed sequence are cached without a graph. Then one copy of every position runs
        above them, seeing the strictly earlier originals and itself; so a copy can only change its own loss, and one
        gradient of the summed loss holds every position's own.
        """
        B, T, _ = h.shape
        cache = DynamicCache(config=self.teacher.model.config)
        with torch.no_grad():
            self.teacher.logits(h, cache=cache)
            point = h if self.config.point == "original" else self.sae.decode(latents)
        earlier = torch.ones(T, T, dtype=torch.bool, device=h.device).tril(-1)
        itself = torch.eye(T, dtype=torch.bool, device=h.device)
        allowed = torch.cat([earlier, itself], dim=1).expand(B, 1, T, 2 * T)
        mask = torch.zeros(allowed.shape, dtype=h.dtype, device=h.device)
        mask = mask.masked_fill(~allowed, torch.finfo(h.dtype).min)
        leaf = point.detach().requires_grad_(True)
        logits = self.teacher.logits(leaf, attention_mask=mask, cache=cache)
        return torch.autograd.grad(next_token_losses(logits, input_ids).sum(), leaf)[0]
