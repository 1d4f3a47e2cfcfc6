"""Several processes at one piece of work, as `torchrun` starts them; a single process is one rank of one.

Ranks share nothing but a file system and a few words over `torch.distributed` (gloo, on any machine). A rank that dies takes
the group with it: whoever waits for it fails, so no rank takes unfinished work for finished.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

from torch import distributed

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
        """What `work` returns on the first rank, which alone does it; its `CocomixError` is raised on every rank."""
        if self.size == 1:
            return work()
        words: list[Any] = [None, None]
        if self.is_first:
            try:
                words[0] = work()
            except CocomixError as error:
                words[1] = str(error)
        distributed.broadcast_object_list(words)
        if words[1] is not None:
            raise CocomixError(words[1])
        value: Value = words[0]
        return value


@contextlib.contextmanager
def joined_ranks() -> Iterator[Ranks]:
    """The group that `torchrun`'s RANK and WORLD_SIZE describe, or one that exists already; left at the end."""
    if distributed.is_initialized():
        yield Ranks(distributed.get_rank(), distributed.get_world_size())
    elif int(os.environ.get("WORLD_SIZE", "1")) == 1:
        yield Ranks()
    else:
        distributed.init_process_group("gloo", timeout=TIMEOUT)
        try:
            yield Ranks(distributed.get_rank(), distributed.get_world_size())
        finally:
            distributed.destroy_process_group()
