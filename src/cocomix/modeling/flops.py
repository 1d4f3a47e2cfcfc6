"""Floating-point operations per token (a multiplication and an addition count as two), counted in two ways.

`algorithmic` counts what the method needs: every matrix product of the blocks, attention over the keys that a causal mask
leaves (half of a square), the output head, the concept head and the K_mix gathered rows of the compression. A backward pass
costs twice its forward pass, less the gradients of frozen weights and all below what learns; recomputation does not count.
With interleaving, the last block counts in full where the next token is predicted and only for its keys and values elsewhere,
as in training without hidden states.

`counter` equals what `torch.utils.flop_counter.FlopCounterMode` counts for the real modules on the meta device. It counts
attention over a full square, and no gathered rows, such as the K_mix rows through which the concept head's values are
learned.

Neither counts norms, activations, softmax, top-k or embedding look-ups.
"""

from __future__ import annotations

from typing import cast

import numpy as np
from torch import nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from cocomix.mixers.config import Count
from cocomix.mixers.layout import Layout
from cocomix.modeling.backbones import DecoderAdapter, adapter_for
from cocomix.modeling.model import CoCoMixForCausalLM

BACKWARD_OVER_FORWARD = 2.0


def forward_flops_per_token(model: CoCoMixForCausalLM, context_length: int, count: Count = "algorithmic") -> float:
    """FLOPs of one forward pass per token of text, in windows of `context_length` tokens."""
    adapter, mixer = model.adapter, model.mixer.config
    insert, layout = mixer.insertion, mixer.layout
    num_positions: int = layout.num_positions(context_length)
    upper = span_flops_per_token(adapter, insert, adapter.num_blocks, num_positions, layout, count)
    flops = span_flops_per_token(adapter, 0, insert, context_length, count=count)
    flops += upper * num_positions / context_length - sum(_skipped_flops(model, context_length, count))
    return flops + mixer.forward_flops(model.config.hidden_size, count) + head_flops(adapter)


def training_flops_per_token(
    model: CoCoMixForCausalLM, context_length: int, count: Count = "algorithmic", concept_loss_share: float = 1.0
) -> float:
    """FLOPs of training per token of text, without those of a teacher.

    Args:
        model: student.
        context_length: T.
        count: way of counting.
        concept_loss_share: share of the tokens with a concept loss, if the model's weight of it is not 0.
    """
    forward = forward_flops_per_token(model, context_length, count)
    mixer, D = model.mixer.config, model.config.hidden_size
    own = mixer.forward_flops(D, count)
    share = concept_loss_share if model.config.concept_loss_weight else 0.0
    with_loss, without = (mixer.backward_flops(D, count, has_concept_loss=has) for has in (True, False))
    backward = share * with_loss + (1 - share) * without
    everything = (1 + BACKWARD_OVER_FORWARD) * (forward - own) + own + backward
    return everything - _frozen_flops(model, context_length, count)


def _frozen_flops(model: CoCoMixForCausalLM, context_length: int, count: Count) -> float:
    """FLOPs per token that frozen weights save a backward pass.

    Above the lowest weights that learn, a frozen product has one in the backward, the gradient of its input; below, none.
    """
    adapter, mixer, L = model.adapter, model.mixer.config, model.adapter.num_blocks
    learns = [_learns(block) for block in adapter.blocks]
    lowest = 0 if _learns(model.get_input_embeddings()) else next((i for i in range(L) if learns[i]), L + 1)
    if mixer.mixes and _learns(model.mixer):
        lowest = min(lowest, mixer.insertion)
    saved = 0.0
    for index in range(L):
        layout = mixer.layout if index >= mixer.insertion else Layout()
        S = layout.num_positions(context_length)
        linear = _linear_flops(adapter, index, index + 1) * S / context_length
        attention = attention_flops_per_token(adapter, index, index + 1, S, layout, count) * S / context_length
        if index == L - 1:
            skipped = _skipped_flops(model, context_length, count)
            linear, attention = linear - skipped[0], attention - skipped[1]
        if index < lowest:
            saved += BACKWARD_OVER_FORWARD * (linear + attention)
        elif not learns[index]:
            saved += linear
    if not _learns(model.get_output_embeddings()):
        saved += head_flops(adapter) * (BACKWARD_OVER_FORWARD if lowest > L else 1)
    return saved


def _learns(module: nn.Module) -> bool:
    return any(parameter.requires_grad for parameter in module.parameters())


def _skipped_flops(model: CoCoMixForCausalLM, context_length: int, count: Count) -> tuple[float, float]:
    """FLOPs per token that the last block saves at unread positions, where it computes only keys and values: of linear maps,
    and of attention."""
    adapter, layout, last = model.adapter, model.mixer.config.layout, model.adapter.num_blocks - 1
    if not layout.stride or not adapter.can_skip(adapter.blocks[last], None):
        return 0.0, 0.0
    num_positions: int = layout.num_positions(context_length)
    num_unread = context_length // layout.stride
    if not num_unread:
        return 0.0, 0.0
    keys = float(num_positions)
    if count == "algorithmic":
        window, unread = adapter.sliding_windows()[adapter.layer_type(last)], layout.span(0, context_length).unread
        keys = mean_keys(num_positions, window, layout, unread)
    attention = 2 * 2 * _attention_width(model.backbone) * keys
    projections = 2 * 2 * model.config.hidden_size * key_width(model.backbone)
    linear = _linear_flops(adapter, last, last + 1) - projections
    return linear * num_unread / context_length, attention * num_unread / context_length


def span_flops_per_token(
    adapter: DecoderAdapter,
    start: int,
    stop: int,
    num_positions: int,
    layout: Layout = Layout(),  # noqa: B008 (it is frozen)
    count: Count = "algorithmic",
) -> float:
    """Forward FLOPs of blocks `start` to `stop - 1` per position, in sequences of `num_positions`."""
    attention = attention_flops_per_token(adapter, start, stop, num_positions, layout, count)
    return _linear_flops(adapter, start, stop) + attention


def _linear_flops(adapter: DecoderAdapter, start: int, stop: int) -> float:
    return sum(
        2.0 * module.weight.numel()
        for block in adapter.blocks[start:stop]
        for module in block.modules()
        if isinstance(module, nn.Linear | Conv1D)
    )


def attention_flops_per_token(
    adapter: DecoderAdapter,
    start: int,
    stop: int,
    num_positions: int,
    layout: Layout = Layout(),  # noqa: B008 (it is frozen)
    count: Count = "algorithmic",
) -> float:
    """The attention part of `span_flops_per_token`: scores and values over the mean number of keys (`counter`: all keys)."""
    if count == "counter":
        return 2.0 * 2 * _attention_width(adapter.model) * num_positions * (stop - start)
    windows = adapter.sliding_windows()
    keys = sum(mean_keys(num_positions, windows[adapter.layer_type(index)], layout) for index in range(start, stop))
    return 2 * 2 * _attention_width(adapter.model) * keys


def mean_keys(num_positions: int, window: int | None, layout: Layout, part: slice = slice(None)) -> float:
    """Mean number of keys that a position attends to: all up to itself, within the window.

    Args:
        num_positions: number of positions of a sequence.
        window: number of tokens that a block sees; None: all.
        layout: layout of the positions.
        part: positions to average over.
    """
    positions = np.arange(num_positions)[part]
    width = num_positions if window is None else min(layout.num_positions(window), num_positions)
    first = np.maximum(positions + 1 - width, 0)
    keys = positions + 1 - first
    return float(keys.mean())


def head_flops(adapter: DecoderAdapter) -> float:
    """Forward FLOPs of the output head per position."""
    return 2.0 * cast(nn.Linear, adapter.model.get_output_embeddings()).weight.numel()


def causal_lm_flops_per_token(model: PreTrainedModel, context_length: int, count: Count = "algorithmic") -> float:
    """Forward FLOPs of a plain decoder, such as a teacher, per token."""
    adapter = adapter_for(model)
    return span_flops_per_token(adapter, 0, adapter.num_blocks, context_length, count=count) + head_flops(adapter)


def _attention_width(model: PreTrainedModel) -> int:
    config = model.config
    return int(config.num_attention_heads * _head_size(model))


def key_width(model: PreTrainedModel) -> int:
    """Number of elements in the keys (and in the values) of one position in one block."""
    config = model.config
    return int((getattr(config, "num_key_value_heads", None) or config.num_attention_heads) * _head_size(model))


def _head_size(model: PreTrainedModel) -> int:
    config = model.config
    return int(getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads)
