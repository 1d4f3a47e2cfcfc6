"""The composed student: embedding, lower blocks, mixer, upper blocks, head.

The backbone remains a complete Hugging Face model inside, so its weights, tying and saving are its own. Without a mixer its
logits are reproduced bit for bit. With interleaving, blocks below the mixer see T positions and blocks above it 2T; a cache
therefore holds T keys below and 2T above (`modeling/cache.py`), and masks and positions follow (`Layout`). The last block
runs only where the next token is predicted (`modeling/last_block.py`).
"""

from __future__ import annotations

import copy
from typing import Any, cast

from jaxtyping import Float, Int64
from torch import Tensor, nn
from transformers import (
    AutoModelForCausalLM,
    Cache,
    DynamicCache,
    GenerationMixin,
    PreTrainedModel,
)

from cocomix.base.errors import CocomixError
from cocomix.base.remote_code import is_trusted
from cocomix.data import IGNORED_LABEL
from cocomix.mixers.base import AutoencoderWeights, MixerInputs, MixerOutput
from cocomix.mixers.concept import ConceptMixer
from cocomix.mixers.config import MIXERS, RECOMMENDED_MIXING
from cocomix.mixers.edits import ConceptEdit, edits_at, generating
from cocomix.modeling.backbones import DecoderAdapter, adapter_for, positions_from_mask
from cocomix.modeling.body import Body
from cocomix.modeling.cache import adopt_cache, let_grow
from cocomix.modeling.configuration import CoCoMixConfig
from cocomix.modeling.inputs import check_mask, check_range, check_tokens, checked_labels
from cocomix.modeling.losses import has_plain_head, loss_of_hidden, loss_of_logits
from cocomix.modeling.output import CoCoMixOutput
from cocomix.modeling.pretrained import CoCoMixPreTrainedModel
from cocomix.modeling.signature import WithOptionalLabels

# Shapes: B batch, T tokens, S positions above the mixer, D width, V vocabulary, K active concepts, A labels per token.


#: Arguments that transformers passes to any model, ignored here.
_IGNORED_ARGUMENTS = frozenset(("cache_position", "token_type_ids"))


class CoCoMixForCausalLM(CoCoMixPreTrainedModel, GenerationMixin):
    """A decoder that predicts concepts and mixes them into its own hidden states.

    Args:
        config: settings of the model.
        backbone: causal LM to build around; by default a new one from `config.backbone_config`.
    """

    def __init__(self, config: CoCoMixConfig, backbone: PreTrainedModel | None = None) -> None:
        config.validate()
        super().__init__(config)
        if backbone is None:
            backbone = AutoModelForCausalLM.from_config(config.backbone_config, trust_remote_code=is_trusted())
        self.backbone = backbone
        self.mixer = config.mixer.build(config.hidden_size)
        self.limit_logits(None)
        adapter_for(backbone)  # refuses an unsupported family before anything runs
        self.post_init()

    @classmethod
    def from_backbone(
        cls, backbone: PreTrainedModel, *, sae: AutoencoderWeights | None = None, **settings: Any
    ) -> CoCoMixForCausalLM:
        """Build around a trained decoder, so that the first logits are close to the decoder's.

        The compression starts at zero and `mixing` defaults to `add`, so what is added starts as the token's mean. With
        `mixing="interleave_residual"`, the default of a mixer without concepts, each inserted position starts as a copy of
        its token at the same position and attends to pairs of equal keys, which weigh as much as one key did. With an `sae`
        of the backbone's residual stream after block `layer`, the default is `interleave`: the concept position holds only
        the concept vector, which starts as the reconstruction.

        Args:
            backbone: any supported causal LM; kept, not copied.
            sae: TopK autoencoder with `layer_norm` normalisation whose encoder and decoder initialise the mixer. Sets
                `num_concepts` and `num_active_concepts` unless they are given.
            settings: settings of `CoCoMixConfig`.

        Raises:
            CocomixError: the backbone is not a supported causal LM, a setting is unknown, or the autoencoder does not fit.
        """
        if not isinstance(backbone, PreTrainedModel):
            raise CocomixError(f"backbone is {backbone!r}; expected a loaded model, such as load_causal_lm gives")
        adapter_for(backbone)
        named = MIXERS.get(settings.get("mixer", "concept"))
        if named is not None and getattr(named, "mixing", None) == "interleave" and sae is None:
            settings.setdefault("mixing", RECOMMENDED_MIXING if named.has_concepts else "interleave_residual")
        if sae is not None:
            settings.setdefault("num_concepts", len(sae.encoder_bias))
            # Without a fixed number of latents it is refused below, by the formula that the mixer lacks.
            settings.setdefault("num_active_concepts", sae.config.num_active_latents or 1)
        model = cls(CoCoMixConfig(backbone_config=backbone.config, **settings), backbone)
        if backbone.generation_config is not None:
            model.generation_config = copy.deepcopy(backbone.generation_config)
        model.mixer.to(device=backbone.device, dtype=backbone.dtype)
        model.mixer.zero_init()
        if sae is not None:
            model.mixer.start_from_autoencoder(sae)
        model.train(backbone.training)
        return model

    def generate(self, *arguments: Any, **options: Any) -> Any:
        """Generate; see `GenerationMixin.generate`."""
        if options.get("assistant_early_exit") is not None:
            raise CocomixError("assistant_early_exit is not supported: it would cut off the blocks above the mixer")
        prompt = options.get("inputs_embeds")
        if prompt is None:
            prompt = arguments[0] if arguments else options.get("inputs", options.get("input_ids"))
        with generating(1 if prompt is None else prompt.shape[1]):  # without a prompt it starts from one token
            return super().generate(*arguments, **options)

    def compile_blocks(self, **options: Any) -> None:
        """`torch.compile` every block of the backbone in place, with `options`.

        Blocks share their code, so two graphs serve them all: one for the length below the mixer, one for that above.
        """
        self.adapter.compile_blocks(**options)

    def limit_logits(self, megabytes: int | None) -> None:
        """Bound the memory of logits that are not returned: over concepts, and in training over the vocabulary.

        Args:
            megabytes: megabytes (2**20 bytes) for one chunk of rows, which has at least one; None: by
                device and precision.

        Raises:
            CocomixError: `megabytes` is below 1.
        """
        if megabytes is not None and megabytes < 1:
            raise CocomixError(f"logits_megabytes is {megabytes}; it must be at least 1")
        self.logits_megabytes = self.mixer.logits_megabytes = megabytes

    @staticmethod
    def create_masks_for_generate(attention_mask: Tensor | None = None, **_: Any) -> Tensor | None:
        """Masks differ below and above the mixer: `forward` makes both, also for static caches."""
        return attention_mask

    @property
    def adapter(self) -> DecoderAdapter:
        return adapter_for(self.backbone)

    @property
    def base_model(self) -> Body:
        """The model without its head."""
        return Body(self)

    @property
    def concept_mixer(self) -> ConceptMixer:
        """The mixer of a model with concepts.

        Raises:
            CocomixError: the model has none.
        """
        if not self.config.mixer.has_concepts:
            raise CocomixError(f"a model with mixer {self.config.mixer.mixer!r} has no concepts")
        return cast(ConceptMixer, self.mixer)

    @property
    def saved_form(self) -> PreTrainedModel:
        """The model to save: the plain decoder if nothing is inserted."""
        return self if self.config.mixer.inserts else self.backbone

    def get_input_embeddings(self) -> nn.Module:
        return cast(nn.Module, self.backbone.get_input_embeddings())

    def set_input_embeddings(self, value: nn.Module) -> None:
        self.backbone.set_input_embeddings(value)

    def get_output_embeddings(self) -> nn.Module:
        return cast(nn.Module, self.backbone.get_output_embeddings())

    def set_output_embeddings(self, new_embeddings: nn.Module) -> None:
        self.backbone.set_output_embeddings(new_embeddings)

    @WithOptionalLabels
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
        logits_to_keep: int | Tensor = 0,
        return_logits: bool | None = None,
        output_hidden_states: bool | None = None,
        output_attentions: bool | None = None,
        skip_head: bool = False,
        return_dict: bool | None = None,
        **unknown: Any,
    ) -> CoCoMixOutput | tuple[Any, ...]:
        """Run the model.

        Args:
            input_ids: token ids, unless `inputs_embeds` is given.
            attention_mask: [B, past + T], zero at padding.
            position_ids: positions of the tokens; by default counted from the first attended token. Without a mask and a
                cache, positions that restart at 0 mark packed documents, and attention stays within each.
            past_key_values: cache of earlier tokens, extended in place.
            inputs_embeds: token embeddings instead of ids.
            labels: [B, T], integer token ids to predict, shifted inside; `-100` is ignored.
            concept_labels: [B, T, A], integer concepts of each token; `-100` is ignored.
            use_cache: create a cache if none is given.
            logits_to_keep: return logits of the last N tokens only, or of these indices; 0, or with labels: of all.
            return_logits: whether to return logits when labels are given; by default only outside training.
            output_hidden_states: also return the residual stream after each block; by default as configured.
            output_attentions: not supported.
            skip_head: return no logits and no losses, and as `hidden_states` only what the head reads, [B, T, D].
            return_dict: False: return a tuple.
            unknown: refused, except arguments that `transformers` passes to any model.

        Raises:
            CocomixError: an id or label is out of range or has the wrong shape or type, attentions are requested, or an
                argument is unknown.
        """
        if output_attentions:
            raise CocomixError("output_attentions is not supported: token and concept positions have maps of two sizes")
        if not _IGNORED_ARGUMENTS.issuperset(unknown):
            raise CocomixError(f"forward has no argument {min(unknown.keys() - _IGNORED_ARGUMENTS)!r}")
        adapter = self.adapter
        check_tokens(self.config, input_ids, inputs_embeds)
        if inputs_embeds is None:
            inputs_embeds = adapter.token_embeddings(cast(Tensor, input_ids))
        B, T = inputs_embeds.shape[:2]
        labels, concept_labels = checked_labels(self.config, (B, T), labels, concept_labels)
        if use_cache and past_key_values is None:
            past_key_values = DynamicCache(config=self.config.backbone_config)
        if past_key_values is None:
            check_mask(attention_mask, B, T)
        else:
            let_grow(past_key_values)
        packed_positions = position_ids if attention_mask is None and past_key_values is None else None
        num_past = past_key_values.get_seq_length() if past_key_values is not None else 0
        if position_ids is None:
            position_ids = positions_from_mask(attention_mask, num_past, T, inputs_embeds.device)
        if adapter.positions == "learned":
            check_range(
                "position_ids", position_ids, self.config.max_position_embeddings, "the model has positions", None
            )

        if output_hidden_states is None:
            output_hidden_states = self.config.output_hidden_states
        states: list[Tensor] | None = [] if output_hidden_states else None
        edits = edits_at(self, position_ids, num_past, B)
        hidden, mixed = self._run(
            inputs_embeds,
            position_ids,
            packed_positions,
            attention_mask,
            past_key_values,
            num_past,
            concept_labels,
            edits,
            states,
        )
        if skip_head:
            return CoCoMixOutput(past_key_values=past_key_values, hidden_states=(adapter.final_norm(hidden),))
        wants_logits = labels is None or (not self.training if return_logits is None else return_logits)
        # With another kind of head, or with capped logits, the loss needs all logits too.
        logits = None
        if wants_logits or not has_plain_head(adapter):
            logits = adapter.logits(hidden if labels is not None else _kept(hidden, logits_to_keep))
        output = CoCoMixOutput(
            logits=logits if wants_logits else None,
            past_key_values=past_key_values,
            hidden_states=None if states is None else tuple(states),
        )
        if labels is not None:
            loss_sum = (
                loss_of_hidden(adapter, hidden, labels, self.logits_megabytes)
                if logits is None
                else loss_of_logits(logits, labels)
            )
            output.lm_loss_sum, output.lm_count = loss_sum, (labels[:, 1:] != IGNORED_LABEL).sum()
        output.set_concepts(mixed)
        output.set_loss(self.config.concept_loss_weight)
        return output.to_tuple() if return_dict is False else output

    def _run(
        self,
        inputs_embeds: Tensor,
        position_ids: Tensor,
        packed_positions: Tensor | None,
        attention_mask: Tensor | None,
        cache: Cache | None,
        num_past: int | Tensor,
        concept_labels: Tensor | None,
        edits: tuple[ConceptEdit, ...],
        states: list[Tensor] | None,
    ) -> tuple[Tensor, MixerOutput]:
        """Hidden states [B, T, D] that predict the next token, and the mixer's output."""
        adapter, L = self.adapter, self.adapter.num_blocks
        insert, layout = self.mixer.config.insertion, self.mixer.config.layout
        if cache is not None and layout.stride:
            adopt_cache(cache, self.config.backbone_config, insert, layout)
        hidden = adapter.embed(inputs_embeds, position_ids)
        # Computed before any block runs: a static cache updates its length in place.
        span = layout.span(num_past, hidden.shape[1], hidden.device) if layout.stride else None
        if states is not None:
            states.append(hidden)
        hidden = adapter.run_blocks(
            hidden,
            0,
            insert,
            position_ids=position_ids,
            attention_mask=attention_mask,
            packed_positions=packed_positions,
            cache=cache,
            collected=states,
        )
        mixed: MixerOutput = self.mixer(hidden, MixerInputs(concept_labels, edits))
        if span is None:
            hidden = adapter.run_blocks(
                mixed.hidden,
                insert,
                L,
                position_ids=position_ids,
                attention_mask=attention_mask,
                packed_positions=packed_positions,
                cache=cache,
                collected=states,
            )
            return hidden, mixed
        hidden = adapter.run_blocks(
            span.kept(mixed.hidden),
            insert,
            L,
            position_ids=span.positions(position_ids, self.mixer.config.position_mode),
            attention_mask=layout.attention_mask(attention_mask),
            packed_positions=span.packed_positions(packed_positions),
            cache=cache,
            layout=layout,
            read=span if states is None else None,
            collected=states,
        )
        return hidden if states is None else hidden[:, span.read], mixed


def _kept(hidden: Tensor, logits_to_keep: int | Tensor) -> Tensor:
    return hidden[:, logits_to_keep] if isinstance(logits_to_keep, Tensor) else hidden[:, -logits_to_keep:]


AutoModelForCausalLM.register(CoCoMixConfig, CoCoMixForCausalLM, exist_ok=True)
