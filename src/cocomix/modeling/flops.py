"""Algorithmic floating-point operations a token (a multiplication and an addition count as two).

Counted: every matrix product of the blocks, attention over the keys that a causal mask leaves (half of a square),
the output head, the concept head and the K_mix gathered rows of the compression. Not counted: norms, activations,
softmax, top-k, embedding look-ups, and anything recomputed. A backward costs twice its forward.
"""

from __future__ import annotations

from typing import cast

from torch import nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from cocomix.modeling.backbones import DecoderAdapter, adapter_for
from cocomix.modeling.mixers import ConceptMixer
from cocomix.modeling.model import CoCoMixForCausalLM

BACKWARD_OVER_FORWARD = 2.0


def forward_flops_per_token(model: CoCoMixForCausalLM, context_length: int) -> float:
    """Of one forward pass, a token of text, in windows of `context_length`."""
    adapter, mixer = model.adapter, model.mixer
    if mixer is None:
        return span_flops_per_token(adapter, 0, adapter.num_blocks, context_length) + head_flops(adapter)
    insert, rate = model.config.insert_layer, mixer.mixing.positions_per_token
    flops = span_flops_per_token(adapter, 0, insert, context_length)
    flops += rate * span_flops_per_token(adapter, insert, adapter.num_blocks, rate * context_length, rate)
    if isinstance(mixer, ConceptMixer):
        C, D = mixer.head_weight.shape
        flops += 2 * C * D + 2 * mixer.num_active_concepts * D
    return flops + head_flops(adapter)


def training_flops_per_token(model: CoCoMixForCausalLM, context_length: int) -> float:
    """Of one training step, a token of text; a teacher's work is not in it."""
    return (1 + BACKWARD_OVER_FORWARD) * forward_flops_per_token(model, context_length)


def span_flops_per_token(
    adapter: DecoderAdapter, start: int, stop: int, num_positions: int, positions_per_token: int = 1
) -> float:
    """Forward FLOPs of blocks `start` to `stop - 1`, a position, in sequences of `num_positions`."""
    linear = sum(
        2 * module.weight.numel()
        for block in adapter.blocks[start:stop]
        for module in block.modules()
        if isinstance(module, nn.Linear | Conv1D)
    )
    return linear + attention_flops_per_token(adapter, start, stop, num_positions, positions_per_token)


def attention_flops_per_token(
    adapter: DecoderAdapter, start: int, stop: int, num_positions: int, positions_per_token: int = 1
) -> float:
    """The part of it that is attention over the mean number of keys: scores, then values."""
    windows = adapter.sliding_windows()
    keys = sum(
        mean_keys(num_positions, windows[adapter.layer_type(index)], positions_per_token)
        for index in range(start, stop)
    )
    return 2 * 2 * _attention_width(adapter.model) * keys


def mean_keys(num_positions: int, window: int | None, positions_per_token: int) -> float:
    """Keys that a position attends to, on average: all up to itself, or as many as its window holds."""
    width = num_positions if window is None else min(window * positions_per_token, num_positions)
    return width - width * (width - 1) / (2 * num_positions)


def head_flops(adapter: DecoderAdapter) -> float:
    """Forward FLOPs of the output head, a position."""
    return 2.0 * cast(nn.Linear, adapter.model.get_output_embeddings()).weight.numel()


def causal_lm_flops_per_token(model: PreTrainedModel, context_length: int) -> float:
    """Forward FLOPs of a plain decoder, such as a teacher, a token."""
    adapter = adapter_for(model)
    return span_flops_per_token(adapter, 0, adapter.num_blocks, context_length) + head_flops(adapter)


def _attention_width(model: PreTrainedModel) -> int:
    config = model.config
    head_size = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    return int(config.num_attention_heads * head_size)
