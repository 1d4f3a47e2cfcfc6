"""A record of the memory that tensors take, real ones or such without numbers."""

from __future__ import annotations

import itertools
import weakref
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class Ledger(TorchDispatchMode):
    """A record of when storages are allocated and freed, but for those of tensors that are there `before`."""

    def __init__(self, before: Iterable[Tensor] = ()) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._events: list[tuple[int, int]] = []
        """Number of a storage and its bytes: positive when allocated, negative when freed."""
        # A view of a weight, as a product makes one, has its storage.
        self._alive = {tensor.untyped_storage()._cdata: -1 for tensor in before}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            if isinstance(tensor, Tensor):
                self._record(tensor.untyped_storage())
        return result

    def _record(self, storage: torch.UntypedStorage) -> None:
        address, size = storage._cdata, storage.nbytes()
        if address not in self._alive:
            number = self._alive[address] = len(self._events)
            self._events.append((number, size))
            weakref.finalize(storage, self._record_freed, address, number, size)

    def _record_freed(self, address: int, number: int, size: int) -> None:
        self._alive.pop(address, None)
        self._events.append((number, -size))

    def peak_excluding(self, tensors: Iterable[Tensor] = ()) -> int:
        """Peak bytes, without the storages of `tensors`, which must still be alive."""
        excluded = {self._alive.get(tensor.untyped_storage()._cdata) for tensor in tensors}
        sizes = [size for number, size in self._events if number not in excluded]
        return max(itertools.accumulate(sizes), default=0)
