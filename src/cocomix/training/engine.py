"""How a student is spread over devices: one process, DDP or FSDP2.

Gradients are summed over the ranks, never averaged: the loss is already divided by the count of the whole step.
"""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel

from cocomix.base.ranks import Ranks
from cocomix.modeling.model import CoCoMixForCausalLM
from cocomix.objectives.base import Batch
from cocomix.training.config import ParallelConfig
from cocomix.training.trainable import TrainableModule


class Engine:
    """A student on this rank's device, wrapped for DDP or FSDP2 if there are several ranks.

    Args:
        student: newly built student, the same on every rank; changed in place.
        config: settings of devices, precision and memory.
        ranks: ranks that train together.
        device: this rank's device.

    Read the student's parameters only after this: sharding replaces them.
    """

    def __init__(self, student: TrainableModule, config: ParallelConfig, ranks: Ranks, device: torch.device) -> None:
        assert config.precision != "auto", "a run chooses before it is built"
        self.student, self.ranks, self.device = student, ranks, device
        self.is_sharded = config.strategy == "fsdp" and ranks.size > 1
        self.product_dtype = torch.bfloat16 if config.precision == "bfloat16" else None
        for objective in student.objectives:
            for module in objective.frozen:
                module.to(device)
        student.model.limit_logits(config.logits_megabytes)
        if config.activation_checkpointing:
            _checkpoint_activations(student.model)
        if config.compile:
            student.model.compile_blocks()
        self._forward: nn.Module = student
        if self.is_sharded:
            _shard(student, ranks, device, self.product_dtype)
        else:
            student.to(device)
        if ranks.size > 1 and not self.is_sharded:
            has_unused = student.model.config.mixer.inserts and not student.model.config.mixer.mixes
            with warnings.catch_warnings():
                # torch 2.13 renamed the argument; earlier versions don't know the new name.
                warnings.filterwarnings("ignore", "`broadcast_buffers` is deprecated", FutureWarning)
                self._forward = DistributedDataParallel(
                    student,
                    broadcast_buffers=False,  # buffers are constants
                    find_unused_parameters=has_unused,
                )

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        """What `TrainableModule.forward` returns for this rank's part of the batch."""
        with self._autocast(), warnings.catch_warnings():
            # Concept positions are a view of the mixer's output. torch warns about in-place changes, but there are none.
            warnings.filterwarnings("ignore", "FSDP2-wrapped module .* returned a view tensor")
            sums: dict[str, Tensor] = self._forward(batch)
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

    def whole_model(self, build: Callable[[], CoCoMixForCausalLM]) -> CoCoMixForCausalLM:
        """The student with all weights gathered on the first rank, into a copy made by `build` if it is sharded.

        Called on all ranks; the others get their own student, sharded or not.
        """
        if not self.is_sharded:
            return self.student.model
        model = build() if self.ranks.is_first else None
        with torch.no_grad():
            for name, parameter in self.student.model.named_parameters():
                whole = parameter.full_tensor() if isinstance(parameter, DTensor) else parameter
                if model is not None:
                    model.get_parameter(name).copy_(whole)
        return self.student.model if model is None else model

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


def _shard(student: TrainableModule, ranks: Ranks, device: torch.device, product_dtype: torch.dtype | None) -> None:
    """Shard with FSDP2: each block is a group, so are the mixer and each objective's head, and the rest forms the last."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard

    mesh = init_device_mesh(device.type, (ranks.size,))
    policy = MixedPrecisionPolicy(param_dtype=product_dtype, reduce_dtype=torch.float32)
    for part in (*student.model.adapter.blocks, student.model.mixer, *student.heads.values(), student):
        if any(True for _ in part.parameters()):
            fully_shard(part, mesh=mesh, mp_policy=policy)
    for module in student.modules():
        if isinstance(module, FSDPModule):
            module.set_gradient_divide_factor(1.0)
            module.set_force_sum_reduction_for_comms(True)
