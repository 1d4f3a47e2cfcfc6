"""Several processes at one piece of work, as `torchrun` starts them; a single process is one rank of one.

Ranks share a file system and talk over `torch.distributed`: gloo between CPUs, and the accelerator's own library between its
devices. A rank that dies takes the group with it: whoever waits for it fails, so no rank takes unfinished work for finished.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

import torch
from torch import Tensor, distributed

from cocomix.base.errors import CocomixError

Value = TypeVar("Value")

#: How long ranks wait for one another: shards are many, so no rank should be far behind.
TIMEOUT = timedelta(hours=12)


@dataclass(frozen=True)
class Ranks:
    """This process among its group."""

    rank: int = 0
    """0-based."""
    size: int = 1
    """Processes in all."""

    @property
    def is_first(self) -> bool:
        return self.rank == 0

    def wait(self) -> None:
        """Until every rank is here."""
        if self.size > 1:
            distributed.barrier()

    def from_first(self, work: Callable[[], Value]) -> Value:
        """What `work` returns on the first rank, which alone does it; what it raises is raised on every rank.

        Raises:
            CocomixError, OSError: `work` did.
        """
        if self.size == 1:
            return work()
        words: list[Any] = [None, None]
        if self.is_first:
            try:
                words[0] = work()
            except (CocomixError, OSError) as error:
                words[1] = error
        distributed.broadcast_object_list(words)
        if words[1] is not None:
            raise words[1]
        value: Value = words[0]
        return value

    def gather(self, value: Value) -> list[Value]:
        """Every rank's value, in order of the ranks."""
        if self.size == 1:
            return [value]
        values: list[Any] = [None] * self.size
        distributed.all_gather_object(values, value)
        return values

    def all(self, value: bool) -> bool:
        """Whether it is true on every rank."""
        return all(self.gather(value))

    def largest(self, value: int) -> int:
        """The largest of the ranks' values. It travels between CPUs, so nothing waits for an accelerator."""
        if self.size == 1:
            return value
        found = torch.tensor(value)
        distributed.all_reduce(found, distributed.ReduceOp.MAX)
        return int(found)

    def sum(self, tensor: Tensor) -> Tensor:
        """The sum over the ranks, in place and on the tensor's device."""
        if self.size > 1:
            distributed.all_reduce(tensor)
        return tensor


@contextlib.contextmanager
def joined_ranks(device: torch.device | None = None) -> Iterator[Ranks]:
    """The group that `torchrun`'s RANK and WORLD_SIZE describe, or one that exists already; left at the end.

    Args:
        device: this rank's accelerator, if tensors are to travel between accelerators too.
    """
    if distributed.is_initialized():
        yield Ranks(distributed.get_rank(), distributed.get_world_size())
    elif int(os.environ.get("WORLD_SIZE", "1")) == 1:
        yield Ranks()
    else:
        backends = "gloo"
        if device is not None and device.type != "cpu":
            backends = f"cpu:gloo,{device.type}:{distributed.get_default_backend_for_device(device)}"
        distributed.init_process_group(backends, timeout=TIMEOUT)
        try:
            yield Ranks(distributed.get_rank(), distributed.get_world_size())
        finally:
            distributed.destroy_process_group()
