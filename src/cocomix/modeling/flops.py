"""Floating-point operations a token (a multiplication and an addition count as two), counted in two ways.

`algorithmic`: what the method asks for. Every matrix product of the blocks, attention over the keys that a causal mask
leaves (half of a square), the output head, the concept head and the K_mix gathered rows of the compression. A backward
costs twice its forward; nothing recomputed counts.

`counter`: what `torch.utils.flop_counter.FlopCounterMode` sees of the real modules on the meta device, which the closed
formula here equals. Attention computes all of a square; gathered rows are no products, the K_mix rows through which the
concept head's values are learned among them. Nothing is recomputed.

Neither counts norms, activations, softmax, top-k and embedding look-ups.
"""

from __future__ import annotations

from typing import Literal, cast

from torch import nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from cocomix.modeling.backbones import DecoderAdapter, adapter_for
from cocomix.modeling.mixers import ConceptMixer
from cocomix.modeling.model import CoCoMixForCausalLM

Count = Literal["algorithmic", "counter"]

BACKWARD_OVER_FORWARD = 2.0


def forward_flops_per_token(model: CoCoMixForCausalLM, context_length: int, count: Count = "algorithmic") -> float:
    """Of one forward pass, a token of text, in windows of `context_length`."""
    adapter, mixer = model.adapter, model.mixer
    if mixer is None:
        return span_flops_per_token(adapter, 0, adapter.num_blocks, context_length, count=count) + head_flops(adapter)
    insert, rate = model.config.insert_layer, mixer.mixing.positions_per_token
    flops = span_flops_per_token(adapter, 0, insert, context_length, count=count)
    flops += rate * span_flops_per_token(adapter, insert, adapter.num_blocks, rate * context_length, rate, count)
    return flops + _concept_flops(model, count) + head_flops(adapter)


def training_flops_per_token(model: CoCoMixForCausalLM, context_length: int, count: Count = "algorithmic") -> float:
    """Of one training step, a token of text; a teacher's work is not in it."""
    forward = forward_flops_per_token(model, context_length, count)
    concepts = _concept_flops(model, count)
    return (1 + BACKWARD_OVER_FORWARD) * (forward - concepts) + concepts + _concept_backward_flops(model, count)


def _concept_flops(model: CoCoMixForCausalLM, count: Count) -> float:
    """Forward of concept head and compression."""
    if not isinstance(model.mixer, ConceptMixer):
        return 0.0
    C, D = model.mixer.head_weight.shape
    return 2.0 * C * D + (2 * model.mixer.num_active_concepts * D if count == "algorithmic" else 0)


def _concept_backward_flops(model: CoCoMixForCausalLM, count: Count) -> float:
    """Their backward: without a concept loss, only K_mix of a token's logits have gradients."""
    if not isinstance(model.mixer, ConceptMixer):
        return 0.0
    C, D = model.mixer.head_weight.shape
    K = model.mixer.num_active_concepts
    has_loss = bool(model.config.concept_loss_weight)
    if not has_loss and model.config.mixing == "none":
        return 0.0
    if count == "algorithmic":
        return BACKWARD_OVER_FORWARD * float(2 * (C if has_loss else K) * D + 2 * K * D)
    return BACKWARD_OVER_FORWARD * 2 * C * D * has_loss


def span_flops_per_token(
    adapter: DecoderAdapter,
    start: int,
    stop: int,
    num_positions: int,
    positions_per_token: int = 1,
    count: Count = "algorithmic",
) -> float:
    """Forward FLOPs of blocks `start` to `stop - 1`, a position, in sequences of `num_positions`."""
    linear = sum(
        2 * module.weight.numel()
        for block in adapter.blocks[start:stop]
        for module in block.modules()
        if isinstance(module, nn.Linear | Conv1D)
    )
    return linear + attention_flops_per_token(adapter, start, stop, num_positions, positions_per_token, count)


def attention_flops_per_token(
    adapter: DecoderAdapter,
    start: int,
    stop: int,
    num_positions: int,
    positions_per_token: int = 1,
    count: Count = "algorithmic",
) -> float:
    """The part of it that is attention: scores, then values, over the mean number of keys, or over all of them."""
    if count == "counter":
        return 2.0 * 2 * _attention_width(adapter.model) * num_positions * (stop - start)
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


def causal_lm_flops_per_token(model: PreTrainedModel, context_length: int, count: Count = "algorithmic") -> float:
    """Forward FLOPs of a plain decoder, such as a teacher, a token."""
    adapter = adapter_for(model)
    return span_flops_per_token(adapter, 0, adapter.num_blocks, context_length, count=count) + head_flops(adapter)


def _attention_width(model: PreTrainedModel) -> int:
    config = model.config
    head_size = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    return int(config.num_attention_heads * head_size)
