"""A step of a large run as one of its ranks sees it, on a machine that has none of them: memory, messages, windows.

    python -m benchmarks.rehearsal

Torch's fake process group answers for the other ranks, and tensors have shapes and no numbers. The code is the run's own:
`Trainer._train_step` on a student from the meta device under FSDP2. Every storage is followed from its allocation to its end;
nothing of the plan that the result is held against is used to count it.
"""

from __future__ import annotations

import hashlib
import os
import time
import weakref
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, replace
from typing import Any
from unittest import mock

import numpy as np
import torch
from torch import Tensor, distributed
from torch._subclasses.fake_tensor import FakeTensorMode, unset_fake_temporarily
from torch.distributed import device_mesh
from torch.distributed.tensor import DTensor
from torch.testing._internal.distributed.fake_pg import FakeStore
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from benchmarks.common import options, store
from cocomix.base.ranks import Ranks
from cocomix.data.order import windows_of_step
from cocomix.data.token_dataset import Windows
from cocomix.mixers.linear_head import default_megabytes
from cocomix.objectives.base import CONCEPT_LABELS, Batch, Surroundings
from cocomix.tools.plan.memory import device_memory
from cocomix.tools.plan.plan import plan
from cocomix.training.config import TrainConfig
from cocomix.training.deferred import DeferredWeights
from cocomix.training.engine import Engine
from cocomix.training.nonfinite import StepWatch
from cocomix.training.optimizer import adamw
from cocomix.training.recipes import find_recipe
from cocomix.training.students import build_student
from cocomix.training.trainable import TrainableModule
from cocomix.training.trainer import Trainer

RECIPE, TOKENS, DEVICES, PER_NODE = "gpt2-1b-cocomix", 200_000_000_000, 64, 8
#: How a run of this size is rehearsed: as the recipe says, with blocks recomputed, and with a copy on each node.
SETTINGS: dict[str, dict[str, Any]] = {
    "fsdp": {},
    "fsdp, checkpointed": {"activation_checkpointing": True},
    "hsdp, checkpointed": {"strategy": "hsdp", "activation_checkpointing": True},
}
#: Passes of the rehearsed step: those between the first and the last are alike.
PASSES = 2


class Memory(TorchDispatchMode):
    """Bytes of all storages that are alive, the most there were, and those of the largest one of numbers.

    Args:
        fake_mode: mode of tensors without numbers that stand for real ones; others of that kind count nothing.
    """

    def __init__(self, fake_mode: FakeTensorMode | None = None) -> None:
        super().__init__()
        self.fake_mode = fake_mode
        self.alive = self.peak = self.largest = 0
        self._sizes: dict[int, int] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if DTensor in types:
            return NotImplemented  # so that it becomes operations on plain tensors, which are seen
        result = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            is_counted = isinstance(tensor, Tensor) and getattr(tensor, "fake_mode", None) is self.fake_mode
            if is_counted and tensor.device.type != "meta":
                self._note(tensor.untyped_storage())
                if tensor.is_floating_point():  # others may be messages
                    self.largest = max(self.largest, tensor.untyped_storage().nbytes())
        return result

    def _note(self, storage: torch.UntypedStorage) -> None:
        address = storage._cdata
        if address not in self._sizes:
            self._sizes[address] = 0
            weakref.finalize(storage, self._forget, address)
        self._set(address, storage.nbytes())

    def _set(self, address: int, size: int) -> None:
        self.alive += size - self._sizes[address]
        self._sizes[address] = size
        self.peak = max(self.peak, self.alive)

    def _forget(self, address: int) -> None:
        self.alive -= self._sizes.pop(address)

    @contextmanager
    def following(self) -> Iterator[None]:
        """Context in which storages that are resized are followed too, as FSDP gives memory back and takes it."""
        resize = torch.UntypedStorage.resize_

        def resized(storage: torch.UntypedStorage, size: int) -> Any:
            result = resize(storage, size)
            if storage._cdata in self._sizes:
                self._set(storage._cdata, size)
            return result

        with mock.patch.object(torch.UntypedStorage, "resize_", resized), self:
            yield


class Messages(TorchDispatchMode):
    """Every collective: its name, the bytes of its larger side, and how often it was called."""

    def __init__(self) -> None:
        super().__init__()
        self.counts: Counter[tuple[str, int]] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if DTensor in types:
            return NotImplemented
        result = func(*args, **(kwargs or {}))
        if func.namespace in ("c10d", "_c10d_functional") and "wait" not in str(func):
            name = func.overloadpacket.__name__.strip("_").removesuffix("_base").replace("_", "")
            sizes = [tensor.nbytes for tensor in tree_leaves((args, result)) if isinstance(tensor, Tensor)]
            self.counts[name, max(sizes)] += 1
        return result


@contextmanager
def imagined_ranks(size: int) -> Iterator[Ranks]:
    """The first of many ranks; all others are imagined."""

    def with_numbers(*arguments: Any, **options: Any) -> Any:
        with unset_fake_temporarily():
            return make(*arguments, **options)

    make = device_mesh.init_device_mesh
    distributed.init_process_group("fake", store=FakeStore(), rank=0, world_size=size)
    try:
        with mock.patch.object(device_mesh, "init_device_mesh", with_numbers):
            yield Ranks(0, size)
    finally:
        distributed.destroy_process_group()


def batch(run: TrainConfig, windows: np.ndarray) -> Batch:
    """Windows and labels of the run's shape."""
    ids = torch.zeros(len(windows), find_recipe(RECIPE).size.context_length, dtype=torch.long)
    labels = torch.zeros(*ids.shape, run.attribution.num_labels, dtype=torch.long)
    return Batch(Windows(ids), {CONCEPT_LABELS: labels})


def trainer(run: TrainConfig, ranks: Ranks) -> Trainer:
    """A trainer without folders, and the moments of a first step."""
    size, device = find_recipe(RECIPE).size, torch.device("cpu")
    weights = DeferredWeights()
    with weights:
        model = build_student(run, size, run.student.mixer)
    near = Surroundings(run.student.hidden_size, run.student.num_layers, run.student.mixer, lambda: model.backbone)
    objectives = [o.implementation()(o, near) for o in run.objectives if o.is_on(run)]
    student = TrainableModule(model, objectives).train()
    made = Trainer.__new__(Trainer)
    made.config, made.ranks, made.device, made.objectives, made.student = run, ranks, device, objectives, student
    made.engine = Engine(student, weights, run.parallel, ranks, device)
    made.optimizer, made.watch = adamw(student, run.optimizer), StepWatch(device)
    made.mixer_metrics = model.mixer.metrics(run.num_tokens, has_labels=True, device=device)
    made.step, made.num_steps = 0, run.num_tokens // (run.batch_size * size.context_length)
    made._batch = lambda windows: batch(run, windows)  # type: ignore[method-assign]
    made._micro_batches = lambda: [np.arange(run.micro_batch_size)] * PASSES  # type: ignore[method-assign]
    for parameter in student.parameters():
        parameter.grad = torch.zeros_like(parameter)
    made.optimizer.step()
    made.optimizer.zero_grad(set_to_none=True)
    return made


def rehearse(run: TrainConfig) -> dict[str, Any]:
    """Memory and messages of a rank in one step, beside the plan's."""
    size, messages, fake_mode = find_recipe(RECIPE).size, Messages(), FakeTensorMode(allow_non_fake_inputs=True)
    memory = Memory(fake_mode)
    assert run.micro_batch_size is not None
    with imagined_ranks(DEVICES) as ranks, fake_mode, memory.following():
        made = trainer(run, ranks)
        between = memory.peak = memory.alive
        with messages:
            made._train_step()
    shares = run.parallel.num_shares(DEVICES, PER_NODE)
    planned = device_memory(run, size, size.num_concepts, DEVICES, shares, run.micro_batch_size, teacher=0)
    return {
        "planned_bytes": asdict(planned) | {"total": planned.total},
        "bytes_between_steps": between,
        "peak_bytes": memory.peak,
        "peak_over_planned": memory.peak / planned.total,
        "messages": [
            {"name": name, "bytes": size, "count": count} for (name, size), count in sorted(messages.counts.items())
        ],
    }


def windows(run: TrainConfig) -> dict[str, Any]:
    """How the windows of two steps fall to the ranks, and what the order of an epoch costs each of them.

    Raises:
        AssertionError: a window is read twice, or by no rank.
    """
    num_windows = TOKENS // find_recipe(RECIPE).size.context_length
    started = time.process_time()
    windows_of_step(run.seed, 0, run.batch_size, num_windows)
    seconds = time.process_time() - started
    passes = 0
    for step in (0, 1):
        read: list[int] = []
        for rank in range(DEVICES):
            made = Trainer.__new__(Trainer)
            made.config, made.ranks, made.num_windows, made.step = run, Ranks(rank, DEVICES), num_windows, step
            parts = made._micro_batches()
            passes = len(parts)
            read += [int(window) for part in parts for window in part]
        assert read == windows_of_step(run.seed, step, run.batch_size, num_windows).tolist()
    return {
        "num_windows": num_windows,
        "windows_a_rank": run.batch_size // DEVICES,
        "passes": passes,
        "order_bytes": 8 * num_windows,
        "order_seconds": round(seconds, 1),
    }


def rates() -> dict[str, float]:
    """Of this machine, one core each: numbers drawn and bytes hashed in a second of processor time."""
    numbers, block = torch.empty(20_000_000), bytes(200_000_000)
    started = time.process_time()
    numbers.normal_()
    drawn = time.process_time()
    hashlib.sha256(block).digest()
    return {
        "numbers_drawn": len(numbers) / (drawn - started),
        "bytes_hashed": len(block) / (time.process_time() - drawn),
    }


def main() -> None:
    given = options("rehearsal", __doc__).parse_args()
    os.environ["LOCAL_WORLD_SIZE"] = str(PER_NODE)
    torch.set_num_threads(1)
    run = find_recipe(RECIPE).config()
    # The chunks of logits are an accelerator's, though tensors are a CPU's.
    on_cuda = default_megabytes("cuda", torch.bfloat16)
    run = replace(run, parallel=replace(run.parallel, logits_megabytes=on_cuda))
    settings = {name: replace(run, parallel=replace(run.parallel, **changes)) for name, changes in SETTINGS.items()}
    store(
        given.output,
        "rehearsal",
        recipe=RECIPE,
        devices=DEVICES,
        devices_per_node=PER_NODE,
        passes_rehearsed=PASSES,
        plan=plan(RECIPE, tokens=str(TOKENS), devices=DEVICES, device="h100").as_dict(),
        num_steps=-(-TOKENS // (run.batch_size * find_recipe(RECIPE).size.context_length)),
        checkpoint_every_steps=run.checkpoint_every_steps,
        windows=windows(run),
        rates=rates(),
        settings={name: rehearse(each) for name, each in settings.items()},
    )


if __name__ == "__main__":
    main()
