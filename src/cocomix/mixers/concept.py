"""The paper's mixer: predict concepts, compress the strongest to one vector, and mix it in (section 3.2)."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn

from cocomix.base.errors import CocomixError
from cocomix.data import IGNORED_LABEL
from cocomix.mixers.base import AutoencoderWeights, Mixer, MixerInputs, MixerOutput
from cocomix.mixers.config import ConceptConfig, MixerConfig
from cocomix.mixers.edits import ConceptEdit
from cocomix.mixers.head import compress_concepts, predict_concepts
from cocomix.mixers.metrics import MAX_DEAD_AFTER_TOKENS, ConceptMetrics, MixerMetrics, concept_counts
from cocomix.mixers.mixing import MIXINGS

# Shapes: B batch, T tokens, D width, C concepts, K active concepts, A labels per token.

STD_EPSILON = 1e-5


class ConceptMixer(Mixer):
    """Predict concepts, keep the strongest, compress them to a vector and mix it in."""

    Config: ClassVar[type[MixerConfig]] = ConceptConfig
    config: ConceptConfig

    def __init__(self, config: ConceptConfig, hidden_size: int) -> None:
        super().__init__(config, hidden_size)
        C, D = config.known_concepts, hidden_size
        self.mixing = MIXINGS[config.mixing]
        self.head_weight = nn.Parameter(torch.empty(C, D))
        self.head_bias = nn.Parameter(torch.empty(C))
        self.compress_weight = nn.Parameter(torch.empty(C, D))  # transposed: row c is the vector that concept c adds
        self.compress_bias = nn.Parameter(torch.empty(D))
        self.pre_bias = nn.Parameter(torch.empty(D))

    def reset_parameters(self, std: float) -> None:
        nn.init.normal_(self.head_weight, std=std)
        nn.init.normal_(self.compress_weight, std=std)
        for bias in (self.head_bias, self.compress_bias, self.pre_bias):
            nn.init.zeros_(bias)

    @torch.no_grad()
    def zero_init(self) -> None:
        # The head keeps its random start, so that the compression has something to learn from at the first step.
        self.compress_weight.zero_()

    @torch.no_grad()
    def start_from_autoencoder(self, sae: AutoencoderWeights) -> None:
        """Start as a sparse autoencoder of the residual stream at `layer`: the inserted vector is its reconstruction.

        With x normalised as in `forward`, the mixer's formula is the autoencoder's: head and compression are its
        encoder and decoder, and its decoder bias is `pre_bias`, or, where it is not subtracted, `compress_bias`.

        Args:
            sae: TopK autoencoder with C latents of width D that normalises each token.

        Raises:
            CocomixError: the autoencoder has another shape, or a formula that the mixer lacks.
        """
        wanted = {"activation": "topk", "normalize_input": "layer_norm", "skip_connection": False, "transcode": False}
        missing = {
            name: getattr(sae.config, name) for name, value in wanted.items() if getattr(sae.config, name) != value
        }
        if missing:
            named = ", ".join(f"{name} {value!r}" for name, value in missing.items())
            raise CocomixError(
                f"the mixer has no formula for an autoencoder with {named}: it keeps the strongest of a layer-normalised "
                "input's logits, as a TopK autoencoder with normalize_input 'layer_norm' does; give one, or leave sae out"
            )
        shape = tuple(sae.encoder_weight.shape)
        if shape != tuple(self.head_weight.shape):
            raise CocomixError(f"the autoencoder has shape {shape}, the mixer {tuple(self.head_weight.shape)}")
        self.head_weight.copy_(sae.encoder_weight)
        self.head_bias.copy_(sae.encoder_bias)
        self.compress_weight.copy_(sae.decoder_weight)
        self.pre_bias.zero_()
        self.compress_bias.zero_()
        bias = self.pre_bias if sae.config.subtract_decoder_bias else self.compress_bias
        bias.copy_(sae.decoder_bias)

    def linear_weights(self) -> tuple[nn.Parameter, ...]:
        return (self.head_weight,)

    def counts(self, output: Any, concept_labels: Int64[Tensor, "B T A"] | None) -> dict[str, Tensor]:
        return concept_counts(output, concept_labels, self.config.known_concepts)

    def metrics(self, num_tokens: int, *, has_labels: bool, device: torch.device | str = "cpu") -> MixerMetrics:
        dead_after_tokens = min(num_tokens // 10, MAX_DEAD_AFTER_TOKENS)
        return ConceptMetrics(self.config.known_concepts, dead_after_tokens, has_labels=has_labels, device=device)

    def normalize(self, hidden: Float[Tensor, "B T D"]) -> tuple[Tensor, Tensor, Tensor]:
        """The head's input [B * T, D], and each token's mean and (unbiased) standard deviation [B, T, 1]."""
        mean, std = hidden.mean(-1, keepdim=True), hidden.std(-1, keepdim=True)
        return ((hidden - mean) / (std + STD_EPSILON) - self.pre_bias).flatten(0, 1), mean, std

    def forward(self, hidden: Float[Tensor, "B T D"], inputs: MixerInputs) -> MixerOutput:
        B, T, D = hidden.shape
        x, mean, std = self.normalize(hidden)
        edits = inputs.edits
        edited = [concepts for edit in edits if (concepts := edit.logit_concepts()) is not None]
        # An edit can make a concept inactive, and the next strongest then takes its place.
        num_edited = sum(concepts.shape[1] for concepts in edited)
        loss_sum = count = labels = None
        if inputs.concept_labels is not None:
            labels = inputs.concept_labels.reshape(B * T, -1)
            count = (labels != IGNORED_LABEL).any(-1).sum()
        values, indices, loss = predict_concepts(
            x,
            self.head_weight,
            self.head_bias,
            min(self.config.num_active_concepts + num_edited, self.config.known_concepts),
            labels,
            self.logits_megabytes,
        )
        if labels is not None:
            loss_sum = loss

        indices, values = indices.view(B, T, -1), values.view(B, T, -1)
        if edited:
            indices, values = self._strongest_after_edits(x.view(B, T, D), indices, values, torch.cat(edited, 1), edits)
        for edit in edits:
            indices, values = edit.edit_active(indices, values)
        vectors = compress_concepts(values.flatten(0, 1), indices.flatten(0, 1), self.compress_weight).view(B, T, D)
        for edit in edits:
            vectors = edit.edit_vectors(vectors)
        concept = (vectors + self.compress_bias + self.pre_bias) * (std + self.config.rescale_epsilon) + mean
        return MixerOutput(self.mix(hidden, concept), indices, values, loss_sum, count)

    def mix(self, hidden: Float[Tensor, "B T D"], vectors: Float[Tensor, "B T D"]) -> Float[Tensor, "B S D"]:
        """Mix the concept vectors into the sequence; override this for a mixing with weights of its own."""
        return self.mixing.combine(hidden, vectors)

    def _strongest_after_edits(
        self,
        x: Float[Tensor, "B T D"],
        indices: Int64[Tensor, "B T P"],
        values: Float[Tensor, "B T P"],
        concepts: Int64[Tensor, "B M"],
        edits: tuple[ConceptEdit, ...],
    ) -> tuple[Int64[Tensor, "B T K"], Float[Tensor, "B T K"]]:
        """The K strongest concepts after the logits of M concepts are edited, from the P strongest before.

        Args:
            x: input of the head.
            indices: the strongest concepts: P is K + M, or C if that is less.
            values: logits of the strongest concepts.
            concepts: edited concepts of each row; values of C and above are padding.
            edits: all edits in force.
        """
        rows = concepts.clamp(max=self.config.known_concepts - 1)
        before = (torch.einsum("btd,bmd->btm", x, self.head_weight[rows]) + self.head_bias[rows].unsqueeze(1)).to(
            values
        )
        after = before
        for edit in edits:
            after = edit.edit_logits(concepts, after)
        # Only changed logits are replaced: elsewhere the head's own stay bit for bit.
        is_changed = after != before
        is_replaced = ((indices.unsqueeze(-1) == concepts[:, None, None, :]) & is_changed.unsqueeze(2)).any(-1)
        # Two edits of one concept give two equal candidates.
        is_repeated = (concepts.unsqueeze(-1) == concepts.unsqueeze(1)).tril(-1).any(-1)
        is_candidate = is_changed & ~(is_repeated | (concepts >= self.config.known_concepts)).unsqueeze(1)
        candidates = torch.cat(
            [values.masked_fill(is_replaced, -torch.inf), after.masked_fill(~is_candidate, -torch.inf)], -1
        )
        chosen = candidates.topk(self.config.num_active_concepts, dim=-1)
        all_indices = torch.cat([indices, concepts.unsqueeze(1).expand_as(after)], -1)
        return all_indices.gather(-1, chosen.indices), chosen.values
