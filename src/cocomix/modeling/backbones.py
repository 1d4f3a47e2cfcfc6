"""How each supported family of decoders is taken apart: embedding, blocks, final norm and head.

An adapter is a view of a Hugging Face causal LM, not a module: it owns no weights and no attention code. It can run two
spans of blocks with a mixer in between, and with another number of positions in the second span.

A new family is a subclass that names its parts, passed to `register_adapter`.
"""

from __future__ import annotations

import abc
import functools
import sys
from collections.abc import Mapping
from typing import Any, ClassVar, TypeVar, cast

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import Cache, PreTrainedConfig, PreTrainedModel
from transformers.pytorch_utils import Conv1D

from cocomix.base.errors import CocomixError
from cocomix.mixers.layout import Layout, Span
from cocomix.modeling.families import FAMILIES, known
from cocomix.modeling.last_block import KeysAndValues, SharedKeys, can_skip, shared_keys_kept
from cocomix.modeling.masks import SLIDING, MaskInputs, check_attention, make_mask

# Shapes: B batch, T tokens, S positions in a span of blocks (T below a mixer, T to 2T above), D width, V vocabulary,
# H key heads, E width of a head.


class DecoderAdapter(abc.ABC):
    """One decoder as embedding, blocks and head; the defaults suit Llama and its many relatives.

    Args:
        model: causal LM of one of the adapter's families.
    """

    families: ClassVar[dict[str, str]]
    """`model_type` of each family, and the names of its well-known models."""
    positions: ClassVar[str] = "rotary"
    """How positions enter: `rotary` in every block, or `learned` once below the first."""
    decoder_name: ClassVar[str] = "model"
    """Attribute of the causal LM that holds its decoder."""
    blocks_name: ClassVar[str] = "layers"
    """Attribute of the decoder that holds its blocks."""
    final_norm_name: ClassVar[str] = "norm"
    """Attribute of the decoder that holds the norm below the head."""
    cache_argument: ClassVar[str] = "past_key_values"
    """Argument of a block that takes the cache."""

    def __init__(self, model: PreTrainedModel) -> None:
        self.model = model
        self.config: PreTrainedConfig = model.config

    @classmethod
    def scratch_settings(cls, family: str, hidden_size: int, num_heads: int) -> dict[str, Any]:
        """Configuration settings for training from scratch, beyond those that all families share."""
        return {"intermediate_size": gated_width(hidden_size), "num_key_value_heads": num_heads}

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
        """The first block's input, from the token embeddings."""
        return inputs_embeds

    def block_arguments(self, hidden: Tensor, position_ids: Tensor, layer_type: str) -> dict[str, Any]:
        """Arguments of the blocks of one type beyond hidden state, mask and cache, such as rotary embeddings."""
        return {"position_embeddings": self.decoder.rotary_emb(hidden, position_ids)}

    def layer_type(self, index: int) -> str:
        """`full_attention`, or `sliding_attention` if the block only sees a window."""
        types = getattr(self.config, "layer_types", None)
        if types is not None:
            return str(types[index])
        return SLIDING if getattr(self.config, "sliding_window", None) is not None else "full_attention"

    def sliding_windows(self) -> dict[str, int | None]:
        """Number of tokens that the blocks of each type see; None: all."""
        types = {self.layer_type(index) for index in range(self.num_blocks)}
        return {layer_type: int(self.config.sliding_window) if layer_type == SLIDING else None for layer_type in types}

    def keys_and_values(
        self, block: nn.Module, hidden: Float[Tensor, "B S D"], arguments: dict[str, Any]
    ) -> KeysAndValues:
        """The keys (rotated, if positions are rotary) and values of a block's attention, both [B, H, S, E].

        An adapter that implements this lets the last block skip the positions where nothing is read.

        Args:
            block: block of the decoder.
            hidden: residual stream before the block.
            arguments: arguments of the block, from `block_arguments`.
        """
        raise NotImplementedError

    def compile_blocks(self, **options: Any) -> None:
        """`torch.compile` every block in place, with `options`; blocks share their code, so one graph serves them all."""
        for block in self.blocks:
            block.compile(**options)

    @property
    def knows_keys(self) -> bool:
        """Whether the adapter implements `keys_and_values`."""
        return type(self).keys_and_values is not DecoderAdapter.keys_and_values

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
        layout: Layout = Layout(),  # noqa: B008 (it is frozen)
        read: Span | None = None,
        collected: list[Tensor] | None = None,
    ) -> Float[Tensor, "B _ D"]:
        """Run blocks `start` to `stop - 1`.

        Args:
            hidden: residual stream before block `start`.
            start: first block, 0-based.
            stop: one past the last block.
            position_ids: positions for rotary embeddings.
            attention_mask: [B, keys], non-zero where a position may be attended to, including past keys; or, for each
                type of block, a four-dimensional mask in the form of the attention implementation; None: plain causal
                attention.
            packed_positions: positions of the span, counted from 0 in each packed document, so that attention stays
                within documents; None: one document. Not with a cache or a mask.
            cache: keys and values of earlier positions, extended in place.
            layout: layout of the span's positions.
            read: return only positions where the next token is predicted, and skip work they don't depend on; None:
                return all positions.
            collected: list to which the residual stream after each block is appended.

        Raises:
            CocomixError: flash attention can't express the mask.
        """
        # One mask and one rotary embedding for each type of block in the span.
        masks: dict[str, Any] = dict(attention_mask) if isinstance(attention_mask, Mapping) else {}
        arguments: dict[str, dict[str, Any]] = {}
        given = None if isinstance(attention_mask, Mapping) else attention_mask
        inputs = MaskInputs(given, packed_positions, cache, layout)
        # Checked before any block runs and fills the cache.
        check_attention(self.config, {self.layer_type(index) for index in range(start, stop)}, len(hidden), inputs)
        for index in range(start, stop):
            block, layer_type = self.blocks[index], self.layer_type(index)
            if index == stop - 1 and read is not None and self.can_skip(block, cache):
                mask = masks.get(layer_type)
                if mask is None:
                    mask = make_mask(self.config, layer_type, index, hidden, inputs, is_explicit=True)
                return self._run_read(block, layer_type, hidden, position_ids, mask, cache, read)
            if layer_type not in masks:
                masks[layer_type] = make_mask(self.config, layer_type, index, hidden, inputs, is_explicit=False)
            if layer_type not in arguments:
                arguments[layer_type] = self.block_arguments(hidden, position_ids, layer_type)
            hidden = block(
                hidden,
                attention_mask=masks[layer_type],
                # Only flash attention reads these, to tell packed documents apart.
                position_ids=packed_positions,
                **{self.cache_argument: cache},
                **arguments[layer_type],
            )
            if collected is not None:
                collected.append(hidden)
        return hidden if read is None else hidden[:, read.read]

    def can_skip(self, block: nn.Module, cache: Cache | None) -> bool:
        """Whether a block can run only on the positions that are read."""
        return self.knows_keys and can_skip(block, str(self.config._attn_implementation), cache)

    def _run_read(
        self,
        block: nn.Module,
        layer_type: str,
        hidden: Tensor,
        position_ids: Tensor,
        mask: Tensor,
        cache: Cache | None,
        span: Span,
    ) -> Tensor:
        """Run one block on the positions that are read, with the keys and values of all positions."""
        read, unread = (
            (hidden[:, part], self.block_arguments(hidden[:, part], position_ids[:, part], layer_type))
            for part in (span.read, span.unread)
        )
        shared = SharedKeys(*unread, functools.partial(self.keys_and_values, block), span, cache)
        with shared_keys_kept(block):
            result: Tensor = block(
                read[0], attention_mask=mask[:, :, span.read], **{self.cache_argument: shared}, **read[1]
            )
        return result

    def logits(self, hidden: Float[Tensor, "B S D"]) -> Float[Tensor, "B S V"]:
        """Final norm and output head."""
        head = cast(nn.Module, self.model.get_output_embeddings())
        return cast(Tensor, head(self.final_norm(hidden)))


def gated_width(hidden_size: int) -> int:
    """Width of a gated MLP with about the parameters of a plain one of 4 D: 8/3 D, rounded up to 32."""
    return -(-8 * hidden_size // 3 // 32) * 32


class GPT2Adapter(DecoderAdapter):
    """GPT-2: learned positions, added once below the first block."""

    families = known("gpt2")
    positions = "learned"
    decoder_name = "transformer"
    blocks_name = "h"
    final_norm_name = "ln_f"

    @classmethod
    def scratch_settings(cls, family: str, hidden_size: int, num_heads: int) -> dict[str, Any]:
        # GPT-2's own activation in one kernel: `gelu_new` computes the same function in eight.
        no_dropout = {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}
        return no_dropout | {"activation_function": "gelu_pytorch_tanh"}

    def embed(
        self, inputs_embeds: Float[Tensor, "B T D"], position_ids: Int64[Tensor, "#B T"]
    ) -> Float[Tensor, "B T D"]:
        decoder = self.decoder
        return cast(Tensor, decoder.drop(inputs_embeds + decoder.wpe(position_ids)))

    def block_arguments(self, hidden: Tensor, position_ids: Tensor, layer_type: str) -> dict[str, Any]:
        return {}

    def keys_and_values(self, block: Any, hidden: Float[Tensor, "B S D"], arguments: dict[str, Any]) -> KeysAndValues:
        attention, normed, D = block.attn, block.ln_1(hidden), hidden.shape[-1]
        fused = attention.c_attn
        # Queries, keys and values are columns of one matrix: leave out the queries if it is a plain one.
        is_plain = type(fused) is Conv1D
        both = F.linear(normed, fused.weight[:, D:].t(), fused.bias[D:]) if is_plain else fused(normed)[..., D:]
        keys, values = both.unflatten(-1, (2, -1, attention.head_dim)).permute(2, 0, 3, 1, 4)
        return keys, values


class GPTNeoXAdapter(DecoderAdapter):
    """GPT-NeoX: parallel attention and MLP, rotary positions on a part of each head."""

    families = known("gpt_neox")
    decoder_name = "gpt_neox"
    final_norm_name = "final_layer_norm"
    cache_argument = "layer_past"

    @classmethod
    def scratch_settings(cls, family: str, hidden_size: int, num_heads: int) -> dict[str, Any]:
        return {"intermediate_size": 4 * hidden_size}

    def embed(
        self, inputs_embeds: Float[Tensor, "B T D"], position_ids: Int64[Tensor, "#B T"]
    ) -> Float[Tensor, "B T D"]:
        return cast(Tensor, self.decoder.emb_dropout(inputs_embeds))

    def keys_and_values(self, block: Any, hidden: Float[Tensor, "B S D"], arguments: dict[str, Any]) -> KeysAndValues:
        attention, normed = block.attention, block.input_layernorm(hidden)
        fused, E = attention.query_key_value, attention.head_size
        if type(fused) is nn.Linear:  # each head's query, key and value are rows of one matrix: leave out the queries
            weight, bias = (
                part if part is None else part.unflatten(0, (-1, 3, E))[:, 1:].flatten(0, 2)
                for part in (fused.weight, fused.bias)
            )
            both = F.linear(normed, weight, bias).unflatten(-1, (-1, 2, E))
        else:
            both = fused(normed).unflatten(-1, (-1, 3, E))[..., 1:, :]
        keys, values = both.permute(3, 0, 2, 1, 4)
        return _rotated(attention, keys, arguments), values


class LlamaAdapter(DecoderAdapter):
    """Llama and the families that share its parts; some of their blocks see only a window."""

    families = known("llama", "mistral", "qwen2", "qwen3", "olmo2")

    @classmethod
    def scratch_settings(cls, family: str, hidden_size: int, num_heads: int) -> dict[str, Any]:
        settings = super().scratch_settings(family, hidden_size, num_heads)
        if family in ("qwen3", "gemma2", "gemma3_text"):  # a head's width is independent of the model's
            settings |= {"head_dim": hidden_size // num_heads, "query_pre_attn_scalar": hidden_size // num_heads}
        return settings

    def keys_and_values(self, block: Any, hidden: Float[Tensor, "B S D"], arguments: dict[str, Any]) -> KeysAndValues:
        attention = block.self_attn
        # OLMo 2 has no input norm, but one over all keys of a token; Qwen3 and Gemma 3 have one over each head's keys.
        normed = block.input_layernorm(hidden) if hasattr(block, "input_layernorm") else hidden
        keys, values = attention.k_proj(normed), attention.v_proj(normed)
        norm, heads = getattr(attention, "k_norm", None), (-1, attention.head_dim)
        if norm is not None and norm.weight.shape[-1] == keys.shape[-1]:
            keys, norm = norm(keys), None
        keys = keys.unflatten(-1, heads)
        if norm is not None:
            keys = norm(keys)
        return _rotated(attention, keys.transpose(1, 2), arguments), values.unflatten(-1, heads).transpose(1, 2)


def _rotated(attention: nn.Module, keys: Float[Tensor, "B H S E"], arguments: dict[str, Any]) -> Tensor:
    """Keys rotated by the family's own function, which is given no queries."""
    rotate = sys.modules[type(attention).__module__].apply_rotary_pos_emb
    return cast(Tensor, rotate(keys[:, :0], keys, *arguments["position_embeddings"])[1])


class Gemma2Adapter(LlamaAdapter):
    """Gemma 2: alternating windows, scaled embeddings, capped logits."""

    families = known("gemma2")

    def logits(self, hidden: Float[Tensor, "B S D"]) -> Float[Tensor, "B S V"]:
        logits, cap = super().logits(hidden), self.config.final_logit_softcapping
        return logits if cap is None else torch.tanh(logits / cap) * cap


class Gemma3Adapter(Gemma2Adapter):
    """Gemma 3, text: a rotary base for each type of block."""

    families = known("gemma3_text")

    def block_arguments(self, hidden: Tensor, position_ids: Tensor, layer_type: str) -> dict[str, Any]:
        return {"position_embeddings": self.decoder.rotary_emb(hidden, position_ids, layer_type)}


_ADAPTERS: dict[str, type[DecoderAdapter]] = {}
AdapterClass = TypeVar("AdapterClass", bound=type[DecoderAdapter])


def register_adapter(adapter: AdapterClass) -> AdapterClass:
    """Support the families of an adapter class; usable as a decorator.

    Raises:
        CocomixError: a family already has another adapter.
    """
    for family in adapter.families:
        if _ADAPTERS.get(family, adapter) is not adapter:
            raise CocomixError(f"the family {family!r} already has an adapter: {_ADAPTERS[family].__name__}")
        _ADAPTERS[family] = adapter
    FAMILIES.update(adapter.families)
    return adapter


for _adapter in (GPT2Adapter, GPTNeoXAdapter, LlamaAdapter, Gemma2Adapter, Gemma3Adapter):
    register_adapter(_adapter)


def supported_families() -> dict[str, type[DecoderAdapter]]:
    """The adapter of every supported family, by `model_type`."""
    return dict(sorted(_ADAPTERS.items()))


def adapter_for(model: PreTrainedModel) -> DecoderAdapter:
    """The adapter of a causal LM, found from its configuration.

    Raises:
        CocomixError: the family has no adapter, or the model is not a causal decoder.
    """
    family = model.config.model_type
    if family not in _ADAPTERS:
        raise CocomixError(
            f"decoders of the family {family!r} are not supported (supported: {', '.join(supported_families())}); "
            "write a DecoderAdapter for it, about 30 lines, and pass it to cocomix.register_adapter (docs/families.md)"
        )
    if getattr(model.config, "use_bidirectional_attention", False):
        raise CocomixError(f"this {family} attends in both directions; cocomix needs a causal decoder")
    adapter = _ADAPTERS[family]
    if not hasattr(model, adapter.decoder_name) or model.get_output_embeddings() is None:
        raise CocomixError(
            f"{type(model).__name__} is not a causal language model: it has no decoder with an output head"
        )
    return adapter(model)


def positions_from_mask(
    attention_mask: Tensor | None, num_past: int | Tensor, num_tokens: int, device: torch.device
) -> Int64[Tensor, "#B T"]:
    """Positions of the new tokens, counted from the first attended token, so that left padding does not shift them."""
    if attention_mask is None or attention_mask.ndim != 2:
        return (torch.arange(num_tokens, device=device) + num_past).unsqueeze(0)
    positions = (attention_mask.long().cumsum(-1) - 1).clamp(min=0)
    return positions[:, -num_tokens:]
