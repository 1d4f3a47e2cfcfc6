"""What a run holds in the memory of one device.

Activations are counted, not estimated: a forward pass of the run's own modules on tensors without numbers, noting every
tensor that autograd keeps for the backward. Attention keeps queries, keys, values, its result and one number a row, as the
fused kernels do. A backward begins with two tensors as large as the vocabulary's logits, its largest temporaries.

Weights, gradients and AdamW's two moments are float32, as the engine has them, whatever the precision of the products.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from cocomix.modeling.model import CoCoMixForCausalLM
from cocomix.training.config import TrainConfig
from cocomix.training.students import TextShape, build_student

Precision = Literal["float32", "bfloat16"]

FLOAT32_BYTES, BFLOAT16_BYTES = 4, 2


@dataclass
class Saved:
    """Bytes that autograd keeps between a forward pass and its backward, each storage once, parameters apart."""

    outside: int = 0
    """Outside of the blocks: embedding, mixer, final norm, losses."""
    blocks: list[int] = field(default_factory=list)
    """Of each block."""
    inputs: list[int] = field(default_factory=list)
    """Of each block's input, all that activation checkpointing keeps of it."""

    @property
    def total(self) -> int:
        return self.outside + sum(self.blocks)

    @property
    def checkpointed(self) -> int:
        """With activation checkpointing: every block's input, and all of the one block whose backward runs."""
        largest = max(block - given for block, given in zip(self.blocks, self.inputs, strict=True))
        return self.outside + sum(self.inputs) + max(0, largest)


def saved_bytes(
    model: CoCoMixForCausalLM, num_windows: int, context_length: int, precision: Precision, num_labels: int
) -> Saved:
    """Count what one forward pass keeps.

    Args:
        model: real, or of tensors without numbers.
        num_windows: of the pass.
        context_length: T.
        precision: of the products.
        num_labels: A, concepts a token that the concept loss learns; 0: none.
    """
    ids = torch.zeros(num_windows, context_length, dtype=torch.long)
    concepts = torch.zeros(*ids.shape, num_labels, dtype=torch.long) if num_labels else None
    device = next(model.parameters()).device.type
    with _counting(model) as saved, torch.autocast(device, torch.bfloat16, enabled=precision == "bfloat16"):
        output = model(input_ids=ids, labels=ids, concept_labels=concepts)
    del output
    return saved


@contextmanager
def _counting(model: CoCoMixForCausalLM) -> Iterator[Saved]:
    blocks = model.adapter.blocks
    saved = Saved(blocks=[0] * len(blocks), inputs=[0] * len(blocks))
    seen = {parameter.untyped_storage()._cdata for parameter in model.parameters()}
    kept: list[Tensor] = []  # so that no storage's place is taken by another's
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

    def leave(*_: Any) -> None:
        current.pop()

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
    """Bytes on one device, and what they are."""

    weights: float
    """Parameters in float32: all of them, or a device's share."""
    gathered: float
    """FSDP: weights of the groups in use, whole, in the precision of the products. bfloat16 without FSDP: their copies."""
    gradients: float
    """In float32; with FSDP whole ones while a step has further passes to come."""
    exchange: float
    """DDP's buckets, as large as the gradients; FSDP's whole gradients of one group."""
    moments: float
    """AdamW's two, in float32."""
    activations: float
    """Kept between forward and backward of one pass."""
    activations_with_checkpointing: float
    """The same, had it been switched on."""
    logits: float
    """The gradient of the vocabulary's logits and of their logarithms, and what distillation holds beside them."""
    teacher: float
    """Its weights, and its dictionary's, where it runs along."""
    is_checkpointed: bool
    """Which of both activations the run has."""

    @property
    def total(self) -> float:
        activations = self.activations_with_checkpointing if self.is_checkpointed else self.activations
        parts = (self.weights, self.gathered, self.gradients, self.exchange, self.moments, self.logits, self.teacher)
        return sum(parts) + activations


def device_memory(
    config: TrainConfig, text: TextShape, num_concepts: int | None, num_devices: int, num_windows: int, teacher: float
) -> Memory:
    """Count a run's memory on each of its devices.

    Args:
        config: of the run.
        text: vocabulary and context.
        num_concepts: C.
        num_devices: that share a step.
        num_windows: of one forward pass.
        teacher: bytes of the teacher's weights where it runs along.
    """
    precision, T = config.parallel.precision, text.context_length
    num_labels = (
        config.attribution.num_labels if config.student.mixer == "concept" and config.concept_loss_weight else 0
    )
    with FakeTensorMode():
        model = build_student(config, text, num_concepts).train()
        # Both are linear in the windows; what is left at none are copies of the weights.
        one, two = (saved_bytes(model, count, T, precision, num_labels) for count in (1, 2))
        groups = _group_sizes(model)
    activations, checkpointed = (
        num_windows * (getattr(two, name) - getattr(one, name)) for name in ("total", "checkpointed")
    )
    num_parameters = sum(groups)
    is_sharded = config.parallel.strategy == "fsdp" and num_devices > 1
    share = num_parameters / num_devices if is_sharded else num_parameters
    product_bytes = BFLOAT16_BYTES if precision == "bfloat16" else FLOAT32_BYTES
    accumulates = num_windows * num_devices < config.batch_size
    exchange = gathered = 0.0
    if is_sharded:
        *others, root = groups
        gathered = product_bytes * (root + 2 * max(others))
        exchange = product_bytes * max(groups)
    else:
        gathered = max(0, 2 * one.total - two.total)
        exchange = FLOAT32_BYTES * num_parameters if num_devices > 1 else 0.0
    logits = FLOAT32_BYTES * text.vocab_size * T * num_windows
    return Memory(
        weights=FLOAT32_BYTES * share,
        gathered=gathered,
        gradients=FLOAT32_BYTES * (num_parameters if accumulates else share),
        exchange=exchange,
        moments=2 * FLOAT32_BYTES * share,
        activations=activations,
        activations_with_checkpointing=checkpointed,
        # Distillation holds log-probabilities of teacher and student too.
        logits=logits * (4 if config.distillation.weight else 2),
        teacher=teacher,
        is_checkpointed=config.parallel.activation_checkpointing,
    )


def _group_sizes(model: CoCoMixForCausalLM) -> list[int]:
    """Parameters of each group that FSDP shards and gathers as one: the blocks, the mixer, and last the rest."""
    parts: list[nn.Module] = [*model.adapter.blocks, *([model.mixer] if model.mixer is not None else [])]
    sizes = [sum(parameter.numel() for parameter in part.parameters()) for part in parts]
    return [*sizes, sum(parameter.numel() for parameter in model.parameters()) - sum(sizes)]
