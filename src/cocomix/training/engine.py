"""How a student is spread over devices: one process, DDP, or FSDP2 over all ranks or within each node.

Gradients are summed over the ranks, never averaged: the loss is already divided by the count of the whole step.
"""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Iterator

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from cocomix.base.ranks import Ranks
from cocomix.modeling.model import CoCoMixForCausalLM
from cocomix.objectives.base import Batch
from cocomix.training.config import ParallelConfig
from cocomix.training.deferred import DeferredWeights
from cocomix.training.trainable import TrainableModule


class Engine:
    """A student on this rank's device, wrapped for DDP or FSDP2 if there are several ranks.

    Args:
        student: newly built student, the same on every rank; changed in place.
        weights: what fills those of the student's tensors that have no memory; needed where the student is sharded.
        config: settings of devices, precision and memory.
        ranks: ranks that train together.
        device: this rank's device.

    Read the student's parameters only after this: sharding replaces them.
    """

    def __init__(
        self,
        student: TrainableModule,
        weights: DeferredWeights,
        config: ParallelConfig,
        ranks: Ranks,
        device: torch.device,
    ) -> None:
        assert config.precision != "auto", "a run chooses before it is built"
        self.student, self.ranks, self.device = student, ranks, device
        num_shares = config.num_shares(ranks.size, ranks.num_on_node)
        self.is_sharded = num_shares > 1
        self.product_dtype = torch.bfloat16 if config.precision == "bfloat16" else None
        student.model.limit_logits(config.logits_megabytes)
        if config.activation_checkpointing:
            _checkpoint_activations(student.model)
        if config.compile:
            student.model.compile_blocks()
        self._forward: nn.Module = student
        if self.is_sharded:
            _shard(student, weights, (ranks.size // num_shares, num_shares), device, self.product_dtype)
        else:
            student.to(device)
        if ranks.size > 1 and not self.is_sharded:
            has_unused = student.model.config.mixer.inserts and not student.model.config.mixer.mixes
            has_unused |= any(o.head is not None and o.config.end < 1 for o in student.objectives)
            with warnings.catch_warnings():
                # torch 2.13 renamed the argument; earlier versions don't know the new name.
                warnings.filterwarnings("ignore", "`broadcast_buffers` is deprecated", FutureWarning)
                self._forward = DistributedDataParallel(
                    student,
                    broadcast_buffers=False,  # buffers are constants
                    find_unused_parameters=has_unused,
                )

    def forward(self, batch: Batch, step: int, num_steps: int) -> dict[str, Tensor]:
        """What `TrainableModule.forward` returns for this rank's part of the batch."""
        with self._autocast(), warnings.catch_warnings():
            # Concept positions are a view of the mixer's output. torch warns about in-place changes, but there are none.
            warnings.filterwarnings("ignore", "FSDP2-wrapped module .* returned a view tensor")
            sums: dict[str, Tensor] = self._forward(batch, step, num_steps)
        return sums

    def backward(self, loss: Tensor) -> None:
        """Accumulate the gradients of this rank's share of the loss, to be summed over the ranks."""
        if isinstance(self._forward, DistributedDataParallel):
            loss = loss * self.ranks.size  # DDP divides by the number of ranks
        loss.backward()

    @contextlib.contextmanager
    def micro_batch(self, *, is_last: bool) -> Iterator[None]:
        """Context of one forward and backward pass; ranks exchange gradients only in the last one of a step."""
        if self.is_sharded:
            self.student.set_requires_gradient_sync(is_last)  # type: ignore[operator]
        with contextlib.ExitStack() as stack:
            if isinstance(self._forward, DistributedDataParallel) and not is_last:
                stack.enter_context(self._forward.no_sync())
            yield

    @contextlib.contextmanager
    def evaluating(self) -> Iterator[CoCoMixForCausalLM]:
        """The student as a plain causal LM, for evaluation by all ranks together."""
        if self.is_sharded:
            self.student.unshard()  # type: ignore[operator]  # blocks gather their own parts
        try:
            with self._autocast():
                yield self.student.model
        finally:
            if self.is_sharded:
                self.student.reshard()  # type: ignore[operator]

    def synchronize(self) -> None:
        """Wait for the device, so that times can be measured."""
        if self.device.type != "cpu":
            torch.accelerator.synchronize(self.device)

    def _autocast(self) -> contextlib.AbstractContextManager[None]:
        if self.product_dtype is None:
            return contextlib.nullcontext()
        return torch.autocast(self.device.type, dtype=self.product_dtype)


def _checkpoint_activations(model: CoCoMixForCausalLM) -> None:
    # transformers renamed the method, and warns about the old name.
    name = "activation_checkpointing_enable"
    enable = getattr(model, name if hasattr(model, name) else "gradient_checkpointing_enable")
    enable({"use_reentrant": False})


def _shard(
    student: TrainableModule,
    weights: DeferredWeights,
    mesh_shape: tuple[int, int],
    device: torch.device,
    product_dtype: torch.dtype | None,
) -> None:
    """Shard with FSDP2: each block is a group, so are the mixer and each objective's head, and the rest forms the last.

    A group gets its initial weights right before it is sharded, so no more than one is ever whole. `mesh_shape` is the number
    of copies of the model, and of ranks that share one.
    """
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard

    first = 1 if mesh_shape[0] == 1 else 0  # one copy has nothing to exchange
    mesh = init_device_mesh(device.type, mesh_shape[first:], mesh_dim_names=("copies", "shares")[first:])
    policy = MixedPrecisionPolicy(param_dtype=product_dtype, reduce_dtype=torch.float32)
    for part in (*student.model.adapter.blocks, student.model.mixer, *student.heads.values(), student):
        weights.fill(part)
        if any(True for _ in part.parameters()):
            fully_shard(part, mesh=mesh, mp_policy=policy)
    for module in student.modules():
        if isinstance(module, FSDPModule):
            module.set_gradient_divide_factor(1.0)
            module.set_force_sum_reduction_for_comms(True)
