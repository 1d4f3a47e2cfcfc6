"""How each supported family of decoders is taken apart: embedding, blocks, final norm and head.

An adapter is a view of a Hugging Face causal LM, not a module: it owns no weights and no attention code. It lets two
spans of blocks run with something in between, with another number of positions in the second span.

A new family needs a subclass that names its parts and is listed in `_ADAPTERS`.
"""

from __future__ import annotations

import abc
from typing import Any, ClassVar, cast

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn
from transformers import Cache, PreTrainedConfig, PreTrainedModel
from transformers.masking_utils import create_causal_mask

from cocomix.base.errors import CocomixError

# Shapes: B batch, T tokens, S positions in a span of blocks (T below a mixer, T or 2T above), D width, V vocabulary.


class DecoderAdapter(abc.ABC):
    """One decoder as embedding, blocks and head.

    Args:
        model: a causal LM of the adapter's family.
    """

    family: ClassVar[str]
    """The family's `model_type`."""

    def __init__(self, model: PreTrainedModel) -> None:
        self.model = model
        self.config: PreTrainedConfig = model.config

    @property
    @abc.abstractmethod
    def blocks(self) -> nn.ModuleList:
        """The decoder blocks, in order."""

    @property
    @abc.abstractmethod
    def final_norm(self) -> nn.Module:
        """The norm between the last block and the head."""

    @abc.abstractmethod
    def embed(
        self, inputs_embeds: Float[Tensor, "B T D"], position_ids: Int64[Tensor, "#B T"]
    ) -> Float[Tensor, "B T D"]:
        """What the first block sees, given the token embeddings."""

    def block_arguments(self, hidden: Tensor, position_ids: Tensor) -> dict[str, Any]:
        """Arguments of every block beyond hidden state, mask and cache, such as rotary embeddings."""
        return {}

    @property
    def num_blocks(self) -> int:
        return len(self.blocks)

    def token_embeddings(self, input_ids: Int64[Tensor, "B T"]) -> Float[Tensor, "B T D"]:
        return cast(Tensor, self.model.get_input_embeddings()(input_ids))

    def run_blocks(
        self,
        hidden: Float[Tensor, "B S D"],
        start: int,
        stop: int,
        *,
        position_ids: Int64[Tensor, "#B S"],
        attention_mask: Tensor | None = None,
        cache: Cache | None = None,
    ) -> Float[Tensor, "B S D"]:
        """Run blocks `start` to `stop - 1`.

        Args:
            hidden: the residual stream before block `start`.
            start: first block, 0-based.
            stop: one past the last block.
            position_ids: positions for rotary embeddings.
            attention_mask: [B, keys], non-zero where a position may be attended to, past keys included; or a mask
                of four dimensions in the form of the attention implementation; None: plain causal attention.
            cache: keys and values of earlier positions, extended in place.
        """
        if start == stop:
            return hidden
        # position_ids stay out of the mask: the repeated positions of an interleaved span would read as packed
        # sequences. layer_idx: below and above the mixer the cache holds different numbers of keys.
        mask = create_causal_mask(
            config=self.config,
            inputs_embeds=hidden,
            attention_mask=attention_mask,
            past_key_values=cache,
            position_ids=None,
            layer_idx=start,
        )
        arguments = self.block_arguments(hidden, position_ids)
        for block in self.blocks[start:stop]:
            hidden = block(
                hidden,
                attention_mask=mask,
                past_key_values=cache,
                use_cache=cache is not None,
                position_ids=position_ids,
                **arguments,
            )
        return hidden

    def logits(self, hidden: Float[Tensor, "B S D"]) -> Float[Tensor, "B S V"]:
        """Final norm and output head."""
        head = cast(nn.Module, self.model.get_output_embeddings())
        return cast(Tensor, head(self.final_norm(hidden)))


class GPT2Adapter(DecoderAdapter):
    """GPT-2: learned positions, added once below the first block."""

    family = "gpt2"

    @property
    def blocks(self) -> nn.ModuleList:
        return cast(nn.ModuleList, self.model.transformer.h)

    @property
    def final_norm(self) -> nn.Module:
        return cast(nn.Module, self.model.transformer.ln_f)

    def embed(
        self, inputs_embeds: Float[Tensor, "B T D"], position_ids: Int64[Tensor, "#B T"]
    ) -> Float[Tensor, "B T D"]:
        decoder = self.model.transformer
        return cast(Tensor, decoder.drop(inputs_embeds + decoder.wpe(position_ids)))


class LlamaAdapter(DecoderAdapter):
    """Llama: rotary positions, applied in every block."""

    family = "llama"

    @property
    def blocks(self) -> nn.ModuleList:
        return cast(nn.ModuleList, self.model.model.layers)

    @property
    def final_norm(self) -> nn.Module:
        return cast(nn.Module, self.model.model.norm)

    def embed(
        self, inputs_embeds: Float[Tensor, "B T D"], position_ids: Int64[Tensor, "#B T"]
    ) -> Float[Tensor, "B T D"]:
        return inputs_embeds

    def block_arguments(self, hidden: Tensor, position_ids: Tensor) -> dict[str, Any]:
        return {"position_embeddings": self.model.model.rotary_emb(hidden, position_ids=position_ids)}


_ADAPTERS: dict[str, type[DecoderAdapter]] = {adapter.family: adapter for adapter in (GPT2Adapter, LlamaAdapter)}


def supported_families() -> tuple[str, ...]:
    """`model_type` of every family with an adapter."""
    return tuple(sorted(_ADAPTERS))


def adapter_for(model: PreTrainedModel) -> DecoderAdapter:
    """The adapter of a causal LM, found from its configuration.

    Raises:
        CocomixError: the family has no adapter.
    """
    family = model.config.model_type
    if family not in _ADAPTERS:
        raise CocomixError(
            f"decoders of the family {family!r} are not supported (supported: {', '.join(supported_families())}); "
            "a new family is a DecoderAdapter of about 20 lines in cocomix/modeling/backbones.py"
        )
    return _ADAPTERS[family](model)


def positions_from_mask(
    attention_mask: Tensor | None, num_past: int, num_tokens: int, device: torch.device
) -> Int64[Tensor, "#B T"]:
    """Positions of the new tokens: counted from the first attended one, so that left padding does not shift them."""
    if attention_mask is None or attention_mask.ndim != 2:
        return torch.arange(num_past, num_past + num_tokens, device=device).unsqueeze(0)
    positions = (attention_mask.long().cumsum(-1) - 1).clamp(min=0)
    return positions[:, -num_tokens:]
