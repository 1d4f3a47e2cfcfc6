"""Which of a token's latents mattered for the prediction: attribution, and labels chosen by it.

    a_i = c_i * d(loss)/d(c_i) = c_i * std * (g . W_dec[i])        g = d(loss)/dh at the hook (`gradients.py`)

The labels of a token are the latents of the A largest scores; the score is +a, -a, |a| or c itself. Only a positive score
makes a label: with fewer of them a token has fewer labels, since the next latent would say the opposite. Labels are a pure
function of a window's tokens and the settings: the batch and the shard that a window comes in change nothing.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int64
from torch import Tensor
from transformers import PreTrainedModel

from cocomix.base.devices import plain_products
from cocomix.base.errors import CocomixError
from cocomix.data import IGNORED_LABEL
from cocomix.labels.config import DERIVED_CONTROLS, AttributionConfig
from cocomix.labels.gradients import residual_gradient
from cocomix.modeling.teacher import Teacher
from cocomix.sae.config import SparseAutoencoderConfig
from cocomix.sae.model import Latents, SparseAutoencoder

# Shapes: B batch, T tokens, N = B * T, D width of the teacher, C latents, K active latents, A labels a token.

#: Elements of one chunk's scores where all C latents have one: 64 MB in float32.
CHUNK_ELEMENTS = 2**24


@dataclass(frozen=True)
class ScoredLabels:
    """Labels of some windows, best first, and the scores that ranked them."""

    labels: Int64[Tensor, "B T A"]
    """-100 at the last position (it has no next token), at those that the dictionary leaves out, and last where fewer than A
    latents have a positive score."""
    scores: Float[Tensor, "B T A"]
    """+a, -a or |a| in nats by the sign, or c; zero where there is no label."""


class ConceptExtractor:
    """Concept labels of token windows.

    Args:
        model: teacher; its parameters are frozen.
        sae: its sparse autoencoder; a copy in the teacher's dtype is used where it has another.
        layer: 0-based block of the teacher after which the SAE reads.
        config: how labels are chosen.
    """

    def __init__(
        self, model: PreTrainedModel, sae: SparseAutoencoder, layer: int, config: AttributionConfig | None = None
    ) -> None:
        self.teacher = Teacher(model.requires_grad_(False), layer)
        if sae.decoder_bias.dtype != model.dtype:
            sae = copy.deepcopy(sae).to(model.dtype)
        self.config = config or AttributionConfig()
        if sae.config.hidden_size != model.config.hidden_size:
            raise CocomixError(
                f"the sparse autoencoder reads width {sae.config.hidden_size}, the teacher has width "
                f"{model.config.hidden_size}"
            )
        self._scores_all_latents = self.config.criterion == "attribution" and self.config.value == "pre_activation"
        num_candidates = sae.config.num_latents if self._scores_all_latents else sae.config.max_active_latents
        if self.config.num_labels > num_candidates:
            raise CocomixError(
                f"num_labels is {self.config.num_labels}, more than the {num_candidates} "
                f"{'' if self._scores_all_latents else 'active '}latents of the sparse autoencoder"
            )
        if self.config.control in DERIVED_CONTROLS:
            raise CocomixError(
                f"the control {self.config.control!r} is made from a finished concept dataset, not from a teacher; use "
                "`cocomix extract --labels`"
            )
        self.sae = random_dictionary(sae, self.config.seed) if self.config.control == "random" else sae
        self._is_finite: dict[str, Tensor] = {}

    def __call__(
        self, input_ids: Int64[Tensor, "B T"], position_ids: Int64[Tensor, "B T"] | None = None
    ) -> Int64[Tensor, "B T A"]:
        """Labels, best first; -100 as in `ScoredLabels`."""
        return self.scored(input_ids, position_ids).labels

    def scored(self, input_ids: Int64[Tensor, "B T"], position_ids: Int64[Tensor, "B T"] | None = None) -> ScoredLabels:
        """Labels and their scores; `position_ids` as `Teacher.residuals` takes them."""
        if input_ids.ndim != 2:
            raise CocomixError(f"input_ids has shape {tuple(input_ids.shape)}; expected [windows, tokens]")
        h = self.teacher.residual(input_ids, position_ids)
        self._watch("residual stream", h)
        gradient = None
        if self.config.criterion == "attribution":
            gradient = self._gradient(input_ids, h, position_ids).flatten(0, 1)
            self._watch("gradient of the loss", gradient)
        rows = h.flatten(0, 1)
        parts = [self._top(rows[part], None if gradient is None else gradient[part]) for part in self._chunks(rows)]
        shape = (*input_ids.shape, self.config.num_labels)
        scores, indices = (torch.cat([part[i] for part in parts]).view(shape) for i in (0, 1))
        is_missing = ~(scores > 0)
        is_missing[:, -1] = True
        is_missing |= ~self.sae.kept(h, input_ids, position_ids).unsqueeze(-1)
        return ScoredLabels(indices.masked_fill(is_missing, IGNORED_LABEL), scores.masked_fill(is_missing, 0.0))

    def require_finite(self, teacher: object) -> None:
        """Refuse a teacher that was not finite at some window so far: there, labels are missing. Waits for the device.

        Args:
            teacher: its folder, for the message.
        """
        for what, is_finite in self._is_finite.items():
            if not bool(is_finite):
                raise CocomixError(
                    f"the {what} of the teacher {teacher} after block {self.teacher.layer} is not finite; its "
                    "weights are too large or damaged: make or get the teacher again"
                )

    def _watch(self, what: str, values: Tensor) -> None:
        is_finite = values.isfinite().all()
        self._is_finite[what] = self._is_finite.get(what, is_finite).to(is_finite.device) & is_finite

    def attribution(
        self,
        input_ids: Int64[Tensor, "B T"],
        h: Float[Tensor, "B T D"],
        latents: Latents,
        position_ids: Int64[Tensor, "B T"] | None = None,
    ) -> Float[Tensor, "B T K"]:
        """a = c * d(loss)/dc of the active latents, in nats; zero at the last position."""
        return self._attribution(latents, self._gradient(input_ids, h, position_ids))

    def _attribution(self, latents: Latents, gradient: Tensor) -> Tensor:
        # d h_hat / d c_i = std * W_dec[i]: the decoder's own backward multiplies by it without gathering [.., K, D].
        c = latents.values.detach().requires_grad_(True)
        h_hat = self.sae.decode(Latents(latents.indices, c, latents.mean, latents.std))
        return latents.values * torch.autograd.grad(h_hat, c, gradient)[0]

    def _gradient(self, input_ids: Tensor, h: Tensor, position_ids: Tensor | None) -> Tensor:
        """d(loss)/dh at the configured point."""
        replacement = None
        if self.config.point == "reconstruction":
            rows = h.flatten(0, 1)
            with torch.no_grad():
                replacement = torch.cat([self.sae(rows[part]) for part in self._chunks(rows)]).view_as(h)
        return residual_gradient(
            self.teacher, input_ids, h, loss=self.config.loss, replacement=replacement, position_ids=position_ids
        )

    def _chunks(self, rows: Tensor) -> list[slice]:
        """Ranges of positions whose scores of all C latents fit the budget.

        Latents too are held for one chunk only: where thresholds decide, a single position can have all C of them active.
        """
        size = max(1, CHUNK_ELEMENTS // self.sae.config.num_latents)
        return [slice(start, start + size) for start in range(0, len(rows), size)]

    def _top(self, h: Float[Tensor, "n D"], gradient: Float[Tensor, "n D"] | None) -> tuple[Tensor, Tensor]:
        """Scores and indices [n, A] of the best latents of some positions; only positive scores make labels."""
        sae, A = self.sae, self.config.num_labels
        with torch.no_grad():
            if self._scores_all_latents and gradient is not None:  # z_i * std * (g . W_dec[i])
                x, _, std = sae.encoder_input(h)
                with plain_products(h.device):  # these products are the scores
                    z = torch.addmm(sae.encoder_bias, x, sae.encoder_weight.t())  # (n, C)
                    a = z * ((std * gradient) @ sae.decoder_weight.t())
                best = self._score(a).topk(A, dim=-1)
                return best.values, best.indices
            latents = sae.encode(h).padded(A)
        scores = latents.values if gradient is None else self._score(self._attribution(latents, gradient))
        best = scores.topk(A, dim=-1)
        return best.values, latents.indices.gather(-1, best.indices)

    def _score(self, a: Tensor) -> Tensor:
        """The scores that rank latents; zero for one that is inactive or without gradient."""
        return {"raises_loss": a, "lowers_loss": -a, "magnitude": a.abs()}[self.config.sign]


def random_dictionary(sae: SparseAutoencoder, seed: int) -> SparseAutoencoder:
    """A frozen TopK dictionary of the same shape with random unit directions, its encoder equal to its decoder.

    It keeps the trained one's centre (the decoder's bias): without it, the mean residual stream would choose the same few
    latents at every token.
    """
    given = sae.config
    if given.num_active_latents is None:
        raise CocomixError(
            "the control 'random' keeps as many latents as the given dictionary, which has no fixed number of them"
        )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        random = SparseAutoencoder(
            SparseAutoencoderConfig(
                hidden_size=given.hidden_size,
                num_latents=given.num_latents,
                num_active_latents=given.num_active_latents,
                normalize_input=given.normalize_input,
                excluded=given.excluded,
            )
        ).to(sae.decoder_bias)
    with torch.no_grad():
        random.decoder_bias.copy_(sae.decoder_bias)
    return random.eval().requires_grad_(False)
