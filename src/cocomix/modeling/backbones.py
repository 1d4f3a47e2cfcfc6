"""How each supported family of decoders is taken apart: embedding, blocks, final norm and head.

An adapter is a view of a Hugging Face causal LM, not a module: it owns no weights and no attention code. It lets two
spans of blocks run with something in between, with another number of positions in the second span.

A new family is a subclass that names its parts, given to `register_adapter`.
"""

from __future__ import annotations

import abc
import copy
from collections.abc import Mapping
from typing import Any, ClassVar, TypeVar, cast

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn
from transformers import Cache, PreTrainedConfig, PreTrainedModel
from transformers.masking_utils import create_causal_mask, create_sliding_window_causal_mask

from cocomix.base.errors import CocomixError
from cocomix.modeling.cache import SpanCache

# Shapes: B batch, T tokens, S positions in a span of blocks (T below a mixer, T or 2T above), D width, V vocabulary.

SLIDING = "sliding_attention"


class DecoderAdapter(abc.ABC):
    """One decoder as embedding, blocks and head; the defaults are those of Llama and its many relatives.

    Args:
        model: a causal LM of one of the adapter's families.
    """

    families: ClassVar[dict[str, str]]
    """`model_type` of each family, and the models that people know it by."""
    positions: ClassVar[str] = "rotary"
    """How positions enter: `rotary` in every block, or `learned` once at the bottom."""
    decoder_name: ClassVar[str] = "model"
    """Where the causal LM keeps its decoder."""
    blocks_name: ClassVar[str] = "layers"
    """Where the decoder keeps its blocks."""
    final_norm_name: ClassVar[str] = "norm"
    """Where the decoder keeps the norm below the head."""
    cache_argument: ClassVar[str] = "past_key_values"
    """What a block calls its cache."""

    def __init__(self, model: PreTrainedModel) -> None:
        self.model = model
        self.config: PreTrainedConfig = model.config

    @property
    def decoder(self) -> Any:
        """The causal LM without its head."""
        return getattr(self.model, self.decoder_name)

    @property
    def blocks(self) -> nn.ModuleList:
        """The decoder blocks, in order."""
        return cast(nn.ModuleList, getattr(self.decoder, self.blocks_name))

    @property
    def final_norm(self) -> nn.Module:
        """The norm between the last block and the head."""
        return cast(nn.Module, getattr(self.decoder, self.final_norm_name))

    @property
    def num_blocks(self) -> int:
        return len(self.blocks)

    def token_embeddings(self, input_ids: Int64[Tensor, "B T"]) -> Float[Tensor, "B T D"]:
        return cast(Tensor, self.model.get_input_embeddings()(input_ids))

    def embed(
        self, inputs_embeds: Float[Tensor, "B T D"], position_ids: Int64[Tensor, "#B T"]
    ) -> Float[Tensor, "B T D"]:
        """What the first block sees, given the token embeddings."""
        return inputs_embeds

    def block_arguments(self, hidden: Tensor, position_ids: Tensor, layer_type: str) -> dict[str, Any]:
        """Arguments of the blocks of one type beyond hidden state, mask and cache, such as rotary embeddings."""
        return {"position_embeddings": self.decoder.rotary_emb(hidden, position_ids)}

    def layer_type(self, index: int) -> str:
        """`full_attention`, or `sliding_attention` where a block sees a window only."""
        types = getattr(self.config, "layer_types", None)
        if types is not None:
            return str(types[index])
        return SLIDING if getattr(self.config, "sliding_window", None) is not None else "full_attention"

    def sliding_windows(self) -> dict[str, int | None]:
        """Tokens that the blocks of each type see; None: all."""
        types = {self.layer_type(index) for index in range(self.num_blocks)}
        return {layer_type: int(self.config.sliding_window) if layer_type == SLIDING else None for layer_type in types}

    def run_blocks(
        self,
        hidden: Float[Tensor, "B S D"],
        start: int,
        stop: int,
        *,
        position_ids: Int64[Tensor, "#B S"],
        attention_mask: Tensor | Mapping[str, Tensor] | None = None,
        packed_positions: Int64[Tensor, "#B S"] | None = None,
        cache: Cache | None = None,
        positions_per_token: int = 1,
        collected: list[Tensor] | None = None,
    ) -> Float[Tensor, "B S D"]:
        """Run blocks `start` to `stop - 1`.

        Args:
            hidden: the residual stream before block `start`.
            start: first block, 0-based.
            stop: one past the last block.
            position_ids: positions for rotary embeddings.
            attention_mask: [B, keys], non-zero where a position may be attended to, past keys included; or a mask
                of four dimensions in the form of the attention implementation, for each type of block; None: plain
                causal attention.
            packed_positions: positions of the span itself, counted from 0 in each packed document, which then sees
                only itself; None: one document. Not with a cache or a mask.
            cache: keys and values of earlier positions, extended in place.
            positions_per_token: 2 above an interleaving mixer, where windows are twice as wide.
            collected: takes the residual stream after each block.
        """
        if start == stop:
            return hidden
        # One mask and one rotary embedding for each type of block in the span. layer_idx: below and above the mixer
        # the cache holds different numbers of keys.
        masks: dict[str, Any] = {}
        arguments: dict[str, dict[str, Any]] = {}
        for index in range(start, stop):
            layer_type = self.layer_type(index)
            if layer_type not in masks:
                masks[layer_type] = self._mask(
                    layer_type, index, hidden, attention_mask, packed_positions, cache, positions_per_token
                )
                arguments[layer_type] = self.block_arguments(hidden, position_ids, layer_type)
        for index in range(start, stop):
            layer_type = self.layer_type(index)
            hidden = self.blocks[index](
                hidden,
                attention_mask=masks[layer_type],
                # Only flash attention reads these, to tell packed documents apart.
                position_ids=packed_positions,
                **{self.cache_argument: cache},
                **arguments[layer_type],
            )
            if collected is not None:
                collected.append(hidden)
        return hidden

    def _mask(
        self,
        layer_type: str,
        index: int,
        hidden: Tensor,
        attention_mask: Tensor | Mapping[str, Tensor] | None,
        packed_positions: Tensor | None,
        cache: Cache | None,
        positions_per_token: int,
    ) -> Any:
        """In the form of the attention implementation: a tensor, a block mask, or None where none is needed."""
        if isinstance(attention_mask, Mapping):
            return attention_mask[layer_type]
        config, make_mask = self.config, create_causal_mask
        uses_flash = str(config._attn_implementation).startswith("flash")
        if uses_flash and packed_positions is not None and hidden.shape[0] > 1:
            raise CocomixError("flash attention keeps packed documents apart in a batch of one window only")
        if layer_type == SLIDING:
            make_mask = create_sliding_window_causal_mask
            if positions_per_token > 1:
                if uses_flash:  # it takes its window from the block, not from a mask
                    raise CocomixError(
                        "flash attention has no doubled sliding window above an interleaving mixer; load the model with "
                        "attn_implementation 'sdpa' or 'flex_attention'"
                    )
                config = copy.copy(config)
                config.sliding_window = positions_per_token * config.sliding_window
        return make_mask(
            config=config,
            inputs_embeds=hidden,
            attention_mask=attention_mask,
            past_key_values=None if cache is None else SpanCache(cache, positions_per_token),
            position_ids=packed_positions,
            layer_idx=index,
        )

    def logits(self, hidden: Float[Tensor, "B S D"]) -> Float[Tensor, "B S V"]:
        """Final norm and output head."""
        head = cast(nn.Module, self.model.get_output_embeddings())
        return cast(Tensor, head(self.final_norm(hidden)))


class GPT2Adapter(DecoderAdapter):
    """GPT-2: learned positions, added once below the first block."""

    families: ClassVar = {"gpt2": "GPT-2"}
    positions = "learned"
    decoder_name = "transformer"
    blocks_name = "h"
    final_norm_name = "ln_f"

    def embed(
        self, inputs_embeds: Float[Tensor, "B T D"], position_ids: Int64[Tensor, "#B T"]
    ) -> Float[Tensor, "B T D"]:
        decoder = self.decoder
        return cast(Tensor, decoder.drop(inputs_embeds + decoder.wpe(position_ids)))

    def block_arguments(self, hidden: Tensor, position_ids: Tensor, layer_type: str) -> dict[str, Any]:
        return {}


class GPTNeoXAdapter(DecoderAdapter):
    """GPT-NeoX: parallel attention and MLP, rotary positions on a part of each head."""

    families: ClassVar = {"gpt_neox": "GPT-NeoX, Pythia"}
    decoder_name = "gpt_neox"
    final_norm_name = "final_layer_norm"
    cache_argument = "layer_past"

    def embed(
        self, inputs_embeds: Float[Tensor, "B T D"], position_ids: Int64[Tensor, "#B T"]
    ) -> Float[Tensor, "B T D"]:
        return cast(Tensor, self.decoder.emb_dropout(inputs_embeds))


class LlamaAdapter(DecoderAdapter):
    """Llama and the families that share its parts; each block says whether it sees a window."""

    families: ClassVar = {
        "llama": "Llama, SmolLM2, TinyLlama",
        "mistral": "Mistral",
        "qwen2": "Qwen2, Qwen2.5",
        "qwen3": "Qwen3",
        "olmo2": "OLMo 2",
    }


class Gemma2Adapter(DecoderAdapter):
    """Gemma 2: alternating windows, scaled embeddings, capped logits."""

    families: ClassVar = {"gemma2": "Gemma 2"}

    def logits(self, hidden: Float[Tensor, "B S D"]) -> Float[Tensor, "B S V"]:
        logits, cap = super().logits(hidden), self.config.final_logit_softcapping
        return logits if cap is None else torch.tanh(logits / cap) * cap


class Gemma3Adapter(Gemma2Adapter):
    """Gemma 3, text: a rotary base for each type of block."""

    families: ClassVar = {"gemma3_text": "Gemma 3 (text)"}

    def block_arguments(self, hidden: Tensor, position_ids: Tensor, layer_type: str) -> dict[str, Any]:
        return {"position_embeddings": self.decoder.rotary_emb(hidden, position_ids, layer_type)}


_ADAPTERS: dict[str, type[DecoderAdapter]] = {}
AdapterClass = TypeVar("AdapterClass", bound=type[DecoderAdapter])


def register_adapter(adapter: AdapterClass) -> AdapterClass:
    """Support the families of an adapter class; usable as a decorator.

    Raises:
        CocomixError: a family has another adapter already.
    """
    for family in adapter.families:
        if _ADAPTERS.get(family, adapter) is not adapter:
            raise CocomixError(f"the family {family!r} has an adapter already: {_ADAPTERS[family].__name__}")
        _ADAPTERS[family] = adapter
    return adapter


for _adapter in (GPT2Adapter, GPTNeoXAdapter, LlamaAdapter, Gemma2Adapter, Gemma3Adapter):
    register_adapter(_adapter)


def supported_families() -> dict[str, type[DecoderAdapter]]:
    """`model_type` of every family with an adapter, and the adapter."""
    return dict(sorted(_ADAPTERS.items()))


def adapter_for(model: PreTrainedModel) -> DecoderAdapter:
    """The adapter of a causal LM, found from its configuration.

    Raises:
        CocomixError: the family has no adapter, or the model is no causal decoder.
    """
    family = model.config.model_type
    if family not in _ADAPTERS:
        raise CocomixError(
            f"decoders of the family {family!r} are not supported (supported: {', '.join(supported_families())}); "
            "write a DecoderAdapter for it, about 30 lines, and give it to cocomix.register_adapter (docs/families.md)"
        )
    if getattr(model.config, "use_bidirectional_attention", False):
        raise CocomixError(f"this {family} attends in both directions; cocomix needs a causal decoder")
    adapter = _ADAPTERS[family]
    if not hasattr(model, adapter.decoder_name) or model.get_output_embeddings() is None:
        raise CocomixError(f"{type(model).__name__} is no causal language model: it has no decoder with an output head")
    return adapter(model)


def positions_from_mask(
    attention_mask: Tensor | None, num_past: int | Tensor, num_tokens: int, device: torch.device
) -> Int64[Tensor, "#B T"]:
    """Positions of the new tokens: counted from the first attended one, so that left padding does not shift them."""
    if attention_mask is None or attention_mask.ndim != 2:
        return (torch.arange(num_tokens, device=device) + num_past).unsqueeze(0)
    positions = (attention_mask.long().cumsum(-1) - 1).clamp(min=0)
    return positions[:, -num_tokens:]
