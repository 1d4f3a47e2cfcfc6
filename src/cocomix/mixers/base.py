"""What sits between block `insert_layer - 1` and block `insert_layer`: the `Mixer` seam.

A mixer turns hidden states [B, T, D] into the sequence that the upper blocks see, and says what it predicted on the way.
"""

from __future__ import annotations

import abc
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn

from cocomix.base.errors import CocomixError
from cocomix.base.labels import IGNORED_LABEL
from cocomix.mixers.edits import ConceptEdit
from cocomix.mixers.head import compress_concepts, predict_concepts
from cocomix.mixers.linear_head import LOGITS_MEGABYTES
from cocomix.mixers.mixing import MIXINGS
from cocomix.modeling.configuration import CoCoMixConfig

# Shapes: B batch, T tokens, S positions above the mixer, D width, C concepts, K active concepts, A labels a token.

STD_EPSILON = 1e-5


@dataclass(frozen=True)
class MixerOutput:
    """What a mixer made of the hidden states."""

    hidden: Float[Tensor, "B S D"]
    concept_indices: Int64[Tensor, "B T K"] | None = None
    concept_values: Float[Tensor, "B T K"] | None = None
    concept_loss_sum: Float[Tensor, ""] | None = None
    concept_count: Int64[Tensor, ""] | None = None


@runtime_checkable
class Dictionary(Protocol):
    """The tensors of a sparse autoencoder, both matrices one row a latent, and its settings."""

    config: Any
    encoder_weight: nn.Parameter
    encoder_bias: nn.Parameter
    decoder_weight: nn.Parameter
    decoder_bias: nn.Parameter


class Mixer(nn.Module, abc.ABC):
    """Something inserted into the decoder."""

    def __init__(self, config: CoCoMixConfig) -> None:
        super().__init__()
        self.mixing = MIXINGS[config.mixing]

    @abc.abstractmethod
    def forward(
        self,
        hidden: Float[Tensor, "B T D"],
        concept_labels: Int64[Tensor, "B T A"] | None = None,
        edits: tuple[ConceptEdit, ...] = (),
    ) -> MixerOutput:
        """Mix.

        Args:
            hidden: residual stream before block `insert_layer`.
            concept_labels: concepts to learn, `IGNORED_LABEL` where there are none.
            edits: of the concept stream, in order.
        """

    @abc.abstractmethod
    def reset_parameters(self, std: float) -> None:
        """Draw the initial weights from N(0, std)."""

    @abc.abstractmethod
    def silence(self) -> None:
        """Make the inserted vector start with nothing of its own, for a backbone that is trained already."""


class ConceptMixer(Mixer):
    """Predict concepts, keep the strongest, compress them to a vector and mix it in (paper, section 3.2)."""

    def __init__(self, config: CoCoMixConfig) -> None:
        super().__init__(config)
        C, D = config.num_concepts, config.hidden_size
        self.num_active_concepts = config.num_active_concepts
        self.num_groups = config.concept_groups
        self.logits_megabytes = LOGITS_MEGABYTES  # of a chunk; see CoCoMixForCausalLM.limit_logits
        self.head_weight = nn.Parameter(torch.empty(C, D))
        self.head_bias = nn.Parameter(torch.empty(C))
        self.compress_weight = nn.Parameter(torch.empty(C, D))  # transposed: row c is what concept c adds
        self.compress_bias = nn.Parameter(torch.empty(D))
        self.pre_bias = nn.Parameter(torch.empty(D))

    def reset_parameters(self, std: float) -> None:
        nn.init.normal_(self.head_weight, std=std)
        nn.init.normal_(self.compress_weight, std=std)
        for bias in (self.head_bias, self.compress_bias, self.pre_bias):
            nn.init.zeros_(bias)

    @torch.no_grad()
    def silence(self) -> None:
        # The head keeps its random start, so that the compression has something to learn from at the first step.
        self.compress_weight.zero_()

    @torch.no_grad()
    def start_from_dictionary(self, dictionary: Dictionary) -> None:
        """Start as the sparse autoencoder of the residual stream here: the inserted vector is its reconstruction.

        With x normalised as in `forward`, the mixer's formula is the autoencoder's: head and compression are its
        encoder and decoder, and `pre_bias` is its decoder bias.

        Args:
            dictionary: its four tensors; C latents of width D.

        Raises:
            CocomixError: its shape or its formula is another.
        """
        if (dictionary.config.normalize_input, dictionary.config.activation) != ("layer_norm", "topk"):
            raise CocomixError(
                "only a TopK autoencoder that normalises each token (normalize_input 'layer_norm') has the mixer's formula"
            )
        shape = tuple(dictionary.encoder_weight.shape)
        if shape != tuple(self.head_weight.shape):
            raise CocomixError(f"the autoencoder has shape {shape}, the mixer {tuple(self.head_weight.shape)}")
        self.head_weight.copy_(dictionary.encoder_weight)
        self.head_bias.copy_(dictionary.encoder_bias)
        self.compress_weight.copy_(dictionary.decoder_weight)
        self.compress_bias.zero_()
        self.pre_bias.copy_(dictionary.decoder_bias)

    def normalize(self, hidden: Float[Tensor, "B T D"]) -> tuple[Tensor, Tensor, Tensor]:
        """What the head's matrix is multiplied with, [B * T, D], and each token's mean and scale, [B, T, 1]."""
        mean = hidden.mean(-1, keepdim=True)
        std = hidden.std(-1, keepdim=True) + STD_EPSILON
        return ((hidden - mean) / std - self.pre_bias).flatten(0, 1), mean, std

    def forward(
        self,
        hidden: Float[Tensor, "B T D"],
        concept_labels: Int64[Tensor, "B T A"] | None = None,
        edits: tuple[ConceptEdit, ...] = (),
    ) -> MixerOutput:
        B, T, D = hidden.shape
        x, mean, std = self.normalize(hidden)

        edited = [concepts for edit in edits if (concepts := edit.logit_concepts()) is not None]
        num_edited = sum(concepts.shape[1] for concepts in edited)
        # An edited concept can leave the active ones, and the next strongest then takes its place.
        num_predicted = min(self.num_active_concepts + num_edited, self.num_groups or len(self.head_bias))
        loss_sum = count = labels = row_weights = None
        if concept_labels is not None:
            given = concept_labels.reshape(B * T, -1)
            valid = (given != IGNORED_LABEL).all(-1)
            labels, row_weights, count = given.clamp(min=0), valid.float(), valid.sum()
        values, indices, loss = predict_concepts(
            x,
            self.head_weight,
            self.head_bias,
            num_predicted,
            labels,
            row_weights,
            self.logits_megabytes,
            self.num_groups,
        )
        if labels is not None:
            loss_sum = loss

        indices, values = indices.view(B, T, -1), values.view(B, T, -1)
        if edited:
            indices, values = self._choose_again(x.view(B, T, D), indices, values, torch.cat(edited, 1), edits)
        for edit in edits:
            indices, values = edit.edit_active(indices, values)
        vectors = compress_concepts(values.flatten(0, 1), indices.flatten(0, 1), self.compress_weight).view(B, T, D)
        for edit in edits:
            vectors = edit.edit_vectors(vectors)
        concept = (vectors + self.compress_bias + self.pre_bias) * std + mean
        return MixerOutput(self.mixing.combine(hidden, concept), indices, values, loss_sum, count)

    def _choose_again(
        self,
        x: Float[Tensor, "B T D"],
        indices: Int64[Tensor, "B T P"],
        values: Float[Tensor, "B T P"],
        concepts: Int64[Tensor, "B M"],
        edits: tuple[ConceptEdit, ...],
    ) -> tuple[Int64[Tensor, "B T K"], Float[Tensor, "B T K"]]:
        """The strongest concepts after edits of M concepts' logits, from the P strongest before.

        Of a group of concepts (`concept_groups`; without, each concept is one) only the best can be active, and an edit can
        make it another: so all members of the edited concepts' groups are looked at.

        Args:
            x: what the head sees.
            indices: the strongest concepts; K + M of them, or all.
            values: their logits.
            concepts: edited ones, of each row; C for none.
            edits: of logits and others.
        """
        C, nothing = len(self.head_bias), -torch.inf
        num_groups = self.num_groups or C
        groups = concepts % num_groups
        members = (groups.unsqueeze(-1) + torch.arange(0, C, num_groups, device=groups.device)).flatten(1)
        rows = members.clamp(max=C - 1)
        before = (torch.einsum("btd,bmd->btm", x, self.head_weight[rows]) + self.head_bias[rows].unsqueeze(1)).to(
            values
        )
        after = before
        for edit in edits:
            after = edit.edit_logits(members, after)
        # Only what was changed is replaced: elsewhere the head's own logits stay, to the bit.
        is_changed = (after != before).unflatten(-1, (concepts.shape[1], -1)).any(-1)
        is_replaced = ((indices % num_groups).unsqueeze(-1) == groups[:, None, None, :]) & is_changed.unsqueeze(2)
        # Two edits of one group give two equal candidates.
        is_repeated = (groups.unsqueeze(-1) == groups.unsqueeze(1)).tril(-1).any(-1)
        best, member = (
            after.masked_fill((members >= C).unsqueeze(1), nothing).unflatten(-1, (concepts.shape[1], -1)).max(-1)
        )
        candidates = torch.cat(
            [
                values.masked_fill(is_replaced.any(-1), nothing),
                best.masked_fill(~is_changed | is_repeated.unsqueeze(1), nothing),
            ],
            -1,
        )
        chosen = candidates.topk(self.num_active_concepts, dim=-1)
        names = torch.cat([indices, groups.unsqueeze(1) + num_groups * member], -1)
        return names.gather(-1, chosen.indices), chosen.values


class PauseMixer(Mixer):
    """One learned vector in place of every concept vector: extra computation without concepts."""

    def __init__(self, config: CoCoMixConfig) -> None:
        super().__init__(config)
        self.pause = nn.Parameter(torch.empty(config.hidden_size))

    def reset_parameters(self, std: float) -> None:
        nn.init.normal_(self.pause, std=std)

    def silence(self) -> None:
        nn.init.zeros_(self.pause)

    def forward(
        self,
        hidden: Float[Tensor, "B T D"],
        concept_labels: Int64[Tensor, "B T A"] | None = None,
        edits: tuple[ConceptEdit, ...] = (),
    ) -> MixerOutput:
        return MixerOutput(self.mixing.combine(hidden, self.pause.expand_as(hidden)))


_MIXERS: dict[str, type[Mixer]] = {"concept": ConceptMixer, "pause": PauseMixer}


def mixer_for(config: CoCoMixConfig) -> Mixer | None:
    """The mixer that a configuration asks for; None for the plain backbone."""
    return None if config.mixer == "none" else _MIXERS[config.mixer](config)
