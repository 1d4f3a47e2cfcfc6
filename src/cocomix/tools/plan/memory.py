"""A run's memory on one device.

Activations are counted, not estimated: a forward pass of the run's own modules on fake tensors records every tensor that
autograd keeps for the backward pass. Attention keeps queries, keys, values, its result and one number per row, like the fused
kernels. The backward pass is run too, for the peak of its temporaries, without gradients of weights.

Weights, gradients and AdamW's two moments are float32, as in the engine, for any precision of the products.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from cocomix.base.compute import Precision
from cocomix.base.ledger import Ledger
from cocomix.mixers.linear_head import default_megabytes
from cocomix.modeling.model import CoCoMixForCausalLM
from cocomix.training.config import TrainConfig
from cocomix.training.students import TextShape, build_student, with_num_concepts

FLOAT32_BYTES, BFLOAT16_BYTES = 4, 2


@dataclass
class SavedBytes:
    """Bytes that autograd keeps between forward and backward pass, counting each storage once, without parameters."""

    outside: int = 0
    """Bytes outside the blocks: embedding, mixer, final norm, losses."""
    blocks: list[int] = field(default_factory=list)
    """Bytes of each block."""
    inputs: list[int] = field(default_factory=list)
    """Bytes of each block's input, which is all that activation checkpointing keeps."""

    @property
    def total(self) -> int:
        return self.outside + sum(self.blocks)

    @property
    def checkpointed(self) -> int:
        """Bytes with activation checkpointing: every block's input, and all of the largest block, while it is recomputed."""
        return self.outside + sum(self.inputs) + self.recomputed

    @property
    def recomputed(self) -> int:
        """Bytes of the largest block beyond its input."""
        return max(0, *(block - block_input for block, block_input in zip(self.blocks, self.inputs, strict=True)))


def saved_bytes(
    model: CoCoMixForCausalLM, num_windows: int, context_length: int, precision: Precision, num_labels: int
) -> SavedBytes:
    """Count the bytes that one forward pass keeps.

    Args:
        model: model with real or fake tensors.
        num_windows: windows of the pass.
        context_length: T, tokens per window.
        precision: precision of the products.
        num_labels: A, labels per token of the concept loss; 0: no concept loss.
    """
    with _counting(model) as saved:
        _forward(model, num_windows, context_length, precision, num_labels)
    return saved


def peak_bytes(
    model: CoCoMixForCausalLM, num_windows: int, context_length: int, precision: Precision, num_labels: int
) -> tuple[int, int]:
    """Peak bytes of a forward and backward pass beyond the weights; arguments as in `saved_bytes`.

    Returns:
        the peak without the weights' gradients, and with them if there were none before.
    """
    with Ledger(model.parameters()) as ledger:
        _forward(model, num_windows, context_length, precision, num_labels).backward()
    gradients = [parameter.grad for parameter in model.parameters() if parameter.grad is not None]
    peaks = ledger.peak_excluding(gradients), ledger.peak_excluding([])
    model.zero_grad(set_to_none=True)
    return peaks


def _forward(
    model: CoCoMixForCausalLM, num_windows: int, context_length: int, precision: Precision, num_labels: int
) -> Tensor:
    """The loss of some dummy windows."""
    ids = torch.zeros(num_windows, context_length, dtype=torch.long)
    concepts = torch.zeros(*ids.shape, num_labels, dtype=torch.long) if num_labels else None
    device = next(model.parameters()).device.type
    with torch.autocast(device, torch.bfloat16, enabled=precision == "bfloat16"):
        loss: Tensor = model(input_ids=ids, labels=ids, concept_labels=concepts).loss
    return loss


@contextmanager
def _counting(model: CoCoMixForCausalLM) -> Iterator[SavedBytes]:
    blocks = model.adapter.blocks
    saved = SavedBytes(blocks=[0] * len(blocks), inputs=[0] * len(blocks))
    seen = {parameter.untyped_storage()._cdata for parameter in model.parameters()}
    kept: list[Tensor] = []  # keeps storages alive, so that no address is reused
    current: list[int] = []

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in seen:
            seen.add(storage._cdata)
            kept.append(tensor)
            if current:
                saved.blocks[current[-1]] += storage.nbytes()
            else:
                saved.outside += storage.nbytes()
        return tensor

    def enter(index: int) -> Any:
        def hook(_: nn.Module, arguments: tuple[Any, ...]) -> None:
            current.append(index)
            saved.inputs[index] = arguments[0].untyped_storage().nbytes()

        return hook

    def leave(_: nn.Module, __: tuple[Any, ...], output: Tensor) -> None:
        index = current.pop()
        if not output.requires_grad:  # below all that learns, nothing is kept to recompute from
            saved.inputs[index] = 0

    handles = [block.register_forward_pre_hook(enter(index)) for index, block in enumerate(blocks)]
    handles += [block.register_forward_hook(leave) for block in blocks]
    try:
        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            yield saved
    finally:
        for handle in handles:
            handle.remove()


@dataclass(frozen=True)
class Memory:
    """Bytes on one device, by purpose."""

    weights: float
    """Parameters in float32: all of them, or a device's share."""
    gathered: float
    """Weights in use, in the precision of the products: FSDP's last group and two blocks, or bfloat16 copies without FSDP."""
    gradients: float
    """Gradients in float32; with FSDP unsharded if a step has several passes. On one device in a single pass those that are
    there when memory peaks: the last ones come when most activations are gone."""
    exchange: float
    """Buffers for exchanging gradients: DDP's buckets, as large as the gradients, or FSDP's gradients of one block."""
    moments: float
    """AdamW's two moments in float32."""
    activations: float
    """Activations kept between forward and backward pass."""
    activations_with_checkpointing: float
    """Activations kept with activation checkpointing."""
    temporaries: float
    """Peak that a backward pass adds, without gradients of weights, and tensors of distillation; with checkpointing, beyond
    the block that is recomputed later."""
    teacher: float
    """Weights of a teacher that runs during training, and of its autoencoder."""
    is_checkpointed: bool
    """Whether activations are checkpointed."""

    @property
    def total(self) -> float:
        activations = self.activations_with_checkpointing if self.is_checkpointed else self.activations
        parts = (
            self.weights,
            self.gathered,
            self.gradients,
            self.exchange,
            self.moments,
            self.temporaries,
            self.teacher,
        )
        return sum(parts) + activations


def device_memory(
    config: TrainConfig,
    text: TextShape,
    num_concepts: int | None,
    num_devices: int,
    num_shares: int,
    num_windows: int,
    teacher: float,
) -> Memory:
    """Count a run's memory on each of its devices.

    Args:
        config: configuration of the run.
        text: vocabulary and context.
        num_concepts: C.
        num_devices: number of devices that share a step.
        num_shares: number of devices that hold one model between them.
        num_windows: windows per forward pass.
        teacher: bytes of the weights of a teacher that runs during training.
    """
    precision, T = config.parallel.precision, text.context_length
    assert precision != "auto", "a plan chooses before it counts"
    num_labels = config.attribution.num_labels if config.concept_loss.is_on(config) else 0
    with FakeTensorMode():
        mixer = with_num_concepts(config, num_concepts)
        model = build_student(config, text, mixer, only_shape=True).train()
        # The tensors are a CPU's, the run an accelerator's unless it says otherwise.
        device, dtype = "cpu" if config.parallel.device == "cpu" else "cuda", getattr(torch, precision)
        model.limit_logits(config.parallel.logits_megabytes or default_megabytes(device, dtype))
        # Saved bytes are linear in the windows; the constant part is copies of the weights.
        once, twice = (saved_bytes(model, count * num_windows, T, precision, num_labels) for count in (1, 2))
        peak, peak_with_gradients = peak_bytes(model, num_windows, T, precision, num_labels)
        temporaries: float = peak - once.total
        groups, learning_groups = _group_sizes(model), _group_sizes(model, only_learning=True)
    num_parameters, num_learning = sum(groups), sum(learning_groups)
    product_bytes = BFLOAT16_BYTES if precision == "bfloat16" else FLOAT32_BYTES
    accumulates = num_windows * num_devices < config.batch_size
    gradients = FLOAT32_BYTES * (num_learning if accumulates else num_learning / num_shares)
    if num_windows == config.batch_size and not config.parallel.activation_checkpointing:
        gradients = peak_with_gradients - peak
    exchange = gathered = 0.0
    if num_shares > 1:
        # The mixer, a group too, is gathered when the activations above it are gone.
        num_blocks = model.adapter.num_blocks
        gathered = product_bytes * (groups[-1] + 2 * max(groups[:num_blocks]))
        exchange = FLOAT32_BYTES * max(learning_groups[:num_blocks])
    else:
        gathered = max(0, 2 * once.total - twice.total)
        exchange = FLOAT32_BYTES * num_learning if num_devices > 1 else 0.0
    if config.parallel.activation_checkpointing:
        # The most comes with the logits, before a block is recomputed.
        temporaries -= twice.recomputed - once.recomputed
    for objective in config.objectives:
        if objective.is_on(config):
            temporaries += objective.implementation().memory_bytes(objective, T * num_windows, text.vocab_size)
    return Memory(
        weights=FLOAT32_BYTES * num_parameters / num_shares,
        gathered=gathered,
        gradients=gradients,
        exchange=exchange,
        moments=2 * FLOAT32_BYTES * num_learning / num_shares,
        activations=twice.total - once.total,
        activations_with_checkpointing=twice.checkpointed - once.checkpointed,
        temporaries=max(0, temporaries),
        teacher=teacher,
        is_checkpointed=config.parallel.activation_checkpointing,
    )


def _group_sizes(model: CoCoMixForCausalLM, *, only_learning: bool = False) -> list[int]:
    """Parameters of each group that FSDP shards and gathers as one: the blocks, the mixer and, last, the rest."""

    def size(part: nn.Module) -> int:
        return sum(p.numel() for p in part.parameters() if p.requires_grad or not only_learning)

    sizes = [size(part) for part in (*model.adapter.blocks, model.mixer)]
    return [*sizes, size(model) - sum(sizes)]
