"""Attention masks for a span of blocks, made by `transformers` for each type of block."""

from __future__ import annotations

import copy
from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

from torch import Tensor
from transformers import Cache, PreTrainedConfig
from transformers.masking_utils import create_causal_mask, create_sliding_window_causal_mask

from cocomix.base.errors import CocomixError
from cocomix.mixers.layout import Layout
from cocomix.modeling.cache import SpanCache

# Shapes: B batch, S positions in a span of blocks.

SLIDING = "sliding_attention"


@dataclass(frozen=True)
class MaskInputs:
    """The inputs from which a span's masks are made; see `DecoderAdapter.run_blocks`."""

    attention_mask: Tensor | None
    packed_positions: Tensor | None
    cache: Cache | None
    layout: Layout


def make_mask(
    config: PreTrainedConfig, layer_type: str, index: int, hidden: Tensor, inputs: MaskInputs, *, is_explicit: bool
) -> Any:
    """A mask in the form of the attention implementation: a tensor, a block mask, or None if none is needed.

    Args:
        config: the backbone's configuration.
        layer_type: type of the block.
        index: index of the block; a cache holds different numbers of keys below and above a mixer.
        hidden: residual stream [B, S, D].
        inputs: mask inputs of the span.
        is_explicit: never return None, for callers that select rows of the mask.
    """
    layout, make = inputs.layout, create_causal_mask
    if layer_type == SLIDING:
        make = create_sliding_window_causal_mask
        if layout.stride:
            config = copy.copy(config)
            config.sliding_window = layout.num_positions(config.sliding_window)
    return make(
        config=config,
        inputs_embeds=hidden,
        attention_mask=inputs.attention_mask,
        past_key_values=None if inputs.cache is None else SpanCache(inputs.cache, layout),
        position_ids=inputs.packed_positions,
        layer_idx=index,
        allow_is_causal_skip=not is_explicit,
    )


def check_attention(
    config: PreTrainedConfig, layer_types: Collection[str], batch_size: int, inputs: MaskInputs
) -> None:
    """Refuse flash attention, which ignores most of a mask, where its result would be wrong.

    Args:
        config: the backbone's configuration.
        layer_types: types of the span's blocks.
        batch_size: B.
        inputs: mask inputs of the span.

    Raises:
        CocomixError: flash attention would compute something else.
    """
    if not str(config._attn_implementation).startswith("flash"):
        return
    if inputs.packed_positions is not None and batch_size > 1:
        raise CocomixError("flash attention keeps packed documents apart in a batch of one window only")
    if (
        SLIDING in layer_types and inputs.layout.stride
    ):  # flash attention gets its window from the block, not from a mask
        raise CocomixError(
            "flash attention has no doubled sliding window above an interleaving mixer; load the model with "
            "attn_implementation 'sdpa' or 'flex_attention'"
        )
