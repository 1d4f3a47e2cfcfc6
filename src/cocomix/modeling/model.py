"""The composed student: embedding, lower blocks, mixer, upper blocks, head.

The backbone stays a whole Hugging Face model inside, so its weights, tying and saving are its own. With no mixer its
logits come out bit for bit. With interleaving, blocks below the mixer see T positions and blocks above 2T; a cache
therefore holds T keys below and 2T above, and masks and positions follow (`Mixing`).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, cast

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    Cache,
    DynamicCache,
    GenerationMixin,
    PreTrainedModel,
)
from transformers.utils import ModelOutput

from cocomix.base.errors import CocomixError
from cocomix.base.labels import IGNORED_LABEL
from cocomix.modeling.backbones import DecoderAdapter, adapter_for, positions_from_mask
from cocomix.modeling.configuration import CoCoMixConfig
from cocomix.modeling.edits import edits_of
from cocomix.modeling.mixers import Mixer, MixerOutput, mixer_for

# Shapes: B batch, T tokens, S positions above the mixer, D width, V vocabulary, K active concepts, A labels a token.


@dataclass
class CoCoMixOutput(ModelOutput):
    """What a forward pass returns. Losses are means over valid targets; sums and counts stand beside them."""

    loss: Float[Tensor, ""] | None = None
    """lm_loss + concept_loss_weight * concept_loss, as far as labels were given."""
    logits: Float[Tensor, "B T V"] | None = None
    """None in training with labels, unless asked for."""
    past_key_values: Cache | None = None
    lm_loss: Float[Tensor, ""] | None = None
    concept_loss: Float[Tensor, ""] | None = None
    lm_loss_sum: Float[Tensor, ""] | None = None
    lm_count: Int64[Tensor, ""] | None = None
    concept_loss_sum: Float[Tensor, ""] | None = None
    concept_count: Int64[Tensor, ""] | None = None
    concept_indices: Int64[Tensor, "B T K"] | None = None
    concept_values: Float[Tensor, "B T K"] | None = None


class CoCoMixPreTrainedModel(PreTrainedModel):
    """What transformers needs to know: configuration class, prefix, initial weights."""

    config_class = CoCoMixConfig
    base_model_prefix = "backbone"
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_flex_attn = True
    _supports_attention_backend = True

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        # The backbone initialises itself, from the same generator state whatever the mixer.
        if isinstance(module, Mixer) and not any(
            getattr(parameter, "_is_hf_initialized", False) for parameter in module.parameters()
        ):
            module.reset_parameters(self.config.initializer_range)


class CoCoMixForCausalLM(CoCoMixPreTrainedModel, GenerationMixin):
    """A decoder that predicts concepts and mixes them into its own hidden states.

    Args:
        config: see `CoCoMixConfig`.
        backbone: a causal LM to build around; made from `config.backbone_config` if not given.
    """

    def __init__(self, config: CoCoMixConfig, backbone: PreTrainedModel | None = None) -> None:
        super().__init__(config)
        if backbone is None:
            backbone = AutoModelForCausalLM.from_config(config.backbone_config)
        self.backbone = backbone
        self.mixer = mixer_for(config)
        adapter_for(backbone)  # refuses an unsupported family before anything runs
        self.post_init()

    @classmethod
    def from_backbone(cls, backbone: PreTrainedModel, **settings: Any) -> CoCoMixForCausalLM:
        """Build around a decoder that has its weights already; `settings` are `CoCoMixConfig`'s."""
        return cls(CoCoMixConfig(backbone_config=backbone.config, **settings), backbone)

    @property
    def adapter(self) -> DecoderAdapter:
        return adapter_for(self.backbone)

    def get_input_embeddings(self) -> nn.Module:
        return cast(nn.Module, self.backbone.get_input_embeddings())

    def set_input_embeddings(self, value: nn.Module) -> None:
        self.backbone.set_input_embeddings(value)

    def get_output_embeddings(self) -> nn.Module:
        return cast(nn.Module, self.backbone.get_output_embeddings())

    def set_output_embeddings(self, new_embeddings: nn.Module) -> None:
        self.backbone.set_output_embeddings(new_embeddings)

    def forward(
        self,
        input_ids: Int64[Tensor, "B T"] | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Int64[Tensor, "_ T"] | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: Float[Tensor, "B T D"] | None = None,
        labels: Tensor | None = None,
        concept_labels: Tensor | None = None,
        use_cache: bool | None = None,
        logits_to_keep: int = 0,
        return_logits: bool | None = None,
        **kwargs: Any,
    ) -> CoCoMixOutput:
        """Run the model.

        Args:
            input_ids: token ids; or give `inputs_embeds`.
            attention_mask: [B, past + T], zero at padding.
            position_ids: positions of the tokens; by default counted from the first attended token.
            past_key_values: cache of earlier tokens, extended in place.
            inputs_embeds: token embeddings in place of ids.
            labels: [B, T], token ids to predict, shifted inside; `-100` is ignored.
            concept_labels: [B, T, A], concepts of each token; a position with a `-100` among them is ignored.
            use_cache: make a cache if none is given.
            logits_to_keep: logits of the last so many tokens only; 0: all.
            return_logits: with labels; by default only outside training.

        Raises:
            CocomixError: a token id or label out of range, or labels of the wrong shape.
        """
        self._check_inputs(input_ids, labels, concept_labels)
        adapter = self.adapter
        if inputs_embeds is None:
            if input_ids is None:
                raise CocomixError("give input_ids or inputs_embeds")
            inputs_embeds = adapter.token_embeddings(input_ids)
        if use_cache and past_key_values is None:
            past_key_values = DynamicCache(config=self.config.backbone_config)
        if position_ids is None:
            num_past = past_key_values.get_seq_length() if past_key_values is not None else 0
            position_ids = positions_from_mask(attention_mask, num_past, inputs_embeds.shape[1], inputs_embeds.device)

        hidden, mixed = self._run(inputs_embeds, position_ids, attention_mask, past_key_values, concept_labels)
        wants_logits = labels is None or (not self.training if return_logits is None else return_logits)
        logits = adapter.logits(hidden[:, -logits_to_keep:] if labels is None else hidden)
        output = CoCoMixOutput(logits=logits if wants_logits else None, past_key_values=past_key_values)
        if labels is not None:
            targets = labels[:, 1:].reshape(-1)
            output.lm_count = (targets != IGNORED_LABEL).sum()
            output.lm_loss_sum = F.cross_entropy(
                logits[:, :-1].reshape(-1, logits.shape[-1]).float(),
                targets,
                ignore_index=IGNORED_LABEL,
                reduction="sum",
            )
            output.lm_loss = output.lm_loss_sum / output.lm_count.clamp(min=1)
            output.loss = output.lm_loss
        if mixed is not None:
            output.concept_indices, output.concept_values = mixed.concept_indices, mixed.concept_values
            if mixed.concept_loss_sum is not None and mixed.concept_count is not None:
                output.concept_loss_sum, output.concept_count = mixed.concept_loss_sum, mixed.concept_count
                output.concept_loss = mixed.concept_loss_sum / mixed.concept_count.clamp(min=1)
                weighted = self.config.concept_loss_weight * output.concept_loss
                output.loss = weighted if output.loss is None else output.loss + weighted
        return output

    def _run(
        self,
        inputs_embeds: Tensor,
        position_ids: Tensor,
        attention_mask: Tensor | None,
        cache: Cache | None,
        concept_labels: Tensor | None,
    ) -> tuple[Tensor, MixerOutput | None]:
        """Hidden states [B, T, D] that predict the next token, and what the mixer said."""
        adapter, L = self.adapter, self.adapter.num_blocks
        hidden = adapter.embed(inputs_embeds, position_ids)
        insert = L if self.mixer is None else self.config.insert_layer
        hidden = adapter.run_blocks(
            hidden, 0, insert, position_ids=position_ids, attention_mask=attention_mask, cache=cache
        )
        if self.mixer is None:
            return hidden, None
        mixing = self.mixer.mixing
        mixed = self.mixer(hidden, concept_labels, edits_of(self))
        hidden = adapter.run_blocks(
            mixed.hidden,
            insert,
            L,
            position_ids=mixing.positions(position_ids, self.config.position_mode),
            attention_mask=mixing.attention_mask(attention_mask),
            cache=cache,
        )
        return mixing.read(hidden), mixed

    def _check_inputs(self, input_ids: Tensor | None, labels: Tensor | None, concept_labels: Tensor | None) -> None:
        if input_ids is not None:
            _check_range("input_ids", input_ids, self.config.vocab_size, "the vocabulary has ids", ignored=None)
        if input_ids is not None and labels is not None and labels.shape != input_ids.shape:
            raise CocomixError(f"labels has shape {tuple(labels.shape)}, input_ids {tuple(input_ids.shape)}")
        if labels is not None:
            _check_range("labels", labels, self.config.vocab_size, "the vocabulary has ids")
        if concept_labels is None:
            return
        if self.config.mixer != "concept":
            raise CocomixError(f"concept_labels were given to a model with mixer {self.config.mixer!r}")
        if input_ids is not None and concept_labels.shape[:2] != input_ids.shape:
            raise CocomixError(
                f"concept_labels has shape {tuple(concept_labels.shape)}; expected {(*input_ids.shape, 'labels a token')}"
            )
        _check_range("concept_labels", concept_labels, self.config.num_concepts, "the model has concepts")


def _check_range(name: str, ids: Tensor, size: int, has: str, ignored: int | None = IGNORED_LABEL) -> None:
    """Refuse an id outside of [0, size) that is not the ignored one; on the CPU only, where looking costs nothing."""
    if ids.device.type != "cpu" or not ids.numel():
        return
    wrong = (ids >= size) | (ids < 0)
    if ignored is not None:
        wrong &= ids != ignored
    if bool(wrong.any()):
        raise CocomixError(f"{name} holds {int(ids[wrong][0])}; {has} 0 to {size - 1}")


AutoConfig.register(CoCoMixConfig.model_type, CoCoMixConfig, exist_ok=True)
AutoModelForCausalLM.register(CoCoMixConfig, CoCoMixForCausalLM, exist_ok=True)
