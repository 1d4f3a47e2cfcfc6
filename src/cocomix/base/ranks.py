"""Processes that work together, as `torchrun` starts them; a single process is rank 0 of 1.

Ranks share a file system and communicate over `torch.distributed`: gloo between CPUs, and the accelerator's own library
between its devices. When a rank dies, every rank that waits for it fails, so none takes unfinished work for finished.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from datetime import timedelta
from typing import Any, TypeVar

import torch
from torch import Tensor, distributed

from cocomix.base.errors import CocomixError

Value = TypeVar("Value")

#: What the libraries that exchange tensors call themselves in their errors.
_EXCHANGE = re.compile("gloo|NCCL", re.IGNORECASE)
#: How long ranks wait for each other. Work is split into many shards, so no rank should lag far behind.
TIMEOUT = timedelta(hours=12)


@dataclass(frozen=True)
class Ranks:
    """This process's place in its group."""

    rank: int = 0
    """0-based index of this process."""
    size: int = 1
    """Number of processes."""
    group: distributed.ProcessGroup | None = None
    """Group that they exchange over; None: torch's default one."""

    @property
    def is_first(self) -> bool:
        return self.rank == 0

    @property
    def num_on_node(self) -> int:
        """Number of processes on this machine, as `torchrun` says; without it all are."""
        return int(os.environ.get("LOCAL_WORLD_SIZE", self.size))

    def beside(self) -> Ranks:
        """The same processes over a group of their own between CPUs, for a thread beside the main one."""
        return self if self.size == 1 else replace(self, group=distributed.new_group(backend="gloo"))

    def wait(self) -> None:
        """Wait until every rank has arrived here."""
        if self.size > 1:
            distributed.barrier(self.group)

    def on_first_rank(self, work: Callable[[], Value]) -> Value:
        """Call `work` on the first rank only, and broadcast its result, or its error, to every rank.

        Raises:
            CocomixError, OSError: raised by `work`.
        """
        if self.size == 1:
            return work()
        outcome: list[Any] = [None, None]  # result, error
        if self.is_first:
            try:
                outcome[0] = work()
            except (CocomixError, OSError) as error:
                outcome[1] = error
        distributed.broadcast_object_list(outcome, group=self.group)
        if outcome[1] is not None:
            raise outcome[1]
        value: Value = outcome[0]
        return value

    def gather(self, value: Value) -> list[Value]:
        """Every rank's value, in rank order."""
        if self.size == 1:
            return [value]
        values: list[Any] = [None] * self.size
        distributed.all_gather_object(values, value, group=self.group)
        return values

    def all(self, value: bool) -> bool:
        """Whether `value` is true on every rank."""
        return all(self.gather(value))

    def largest(self, value: int) -> int:
        """The largest of the ranks' values, reduced between CPUs so that no accelerator is waited for."""
        if self.size == 1:
            return value
        maximum = torch.tensor(value)
        distributed.all_reduce(maximum, distributed.ReduceOp.MAX, group=self.group)
        return int(maximum)

    def sum(self, tensor: Tensor) -> Tensor:
        """Sum over the ranks, in place and on the tensor's device."""
        if self.size > 1:
            distributed.all_reduce(tensor, group=self.group)
        return tensor


@contextlib.contextmanager
def joined_ranks(device: torch.device | None = None) -> Iterator[Ranks]:
    """Join the group described by `torchrun`'s RANK and WORLD_SIZE, and leave it at the end; reuses an existing group.

    Args:
        device: this rank's accelerator, if tensors must also be exchanged between accelerators.

    Raises:
        CocomixError: another rank has ended.
    """
    if distributed.is_initialized():
        yield Ranks(distributed.get_rank(), distributed.get_world_size())
    elif int(os.environ.get("WORLD_SIZE", "1")) == 1:
        yield Ranks()
    else:
        backends = "gloo"
        if device is not None and device.type != "cpu":
            backends = f"cpu:gloo,{device.type}:{distributed.get_default_backend_for_device(device)}"
        try:
            distributed.init_process_group(backends, timeout=TIMEOUT)
            yield Ranks(distributed.get_rank(), distributed.get_world_size())
        except RuntimeError as error:
            if not isinstance(error, distributed.DistError) and not _EXCHANGE.search(str(error)):
                raise
            # Its frames hold the broken group, whose threads may wait for this one's lock while it waits for them to end.
            ctypes.pythonapi.Py_IncRef(ctypes.py_object(error))
            raise CocomixError(
                "another process of this run has ended or can't be reached, so this one stops; its own message says why, and "
                "the same command continues"
            ) from error
        finally:
            if distributed.is_initialized():
                distributed.destroy_process_group()
