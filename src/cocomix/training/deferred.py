"""Weights that have no memory yet: a model built without any, and how each of its tensors is to be filled.

No rank may hold a whole student, and yet its initial weights must be the bits that one process draws. So the student's own
code builds it, on tensors of the meta device. Every operation that fills one is written down, with the state of the random
generator before it, and is repeated when a part of the model gets its memory: in any order, one tensor at a time.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

#: Operations that give every element a new value; what filled the tensor before them doesn't matter.
_OVERWRITING = ("normal_", "uniform_", "zero_", "fill_", "copy_")

Filling = Callable[[Tensor], object]


class DeferredWeights(TorchDispatchMode):
    """Within its context `torch.empty` takes no memory; `fill` makes up for it.

    Random numbers are drawn within it as without it, into one tensor at a time that is dropped, so the generator ends in the
    same state.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._fillings: dict[int, list[Filling]] = defaultdict(list)
        """What fills a storage, by its address."""
        self._storages: list[torch.UntypedStorage] = []  # keeps addresses from being used again

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is torch.ops.aten.empty.memory_format:
            empty = func(*args, **kwargs | {"device": "meta", "pin_memory": False})
            self._storages.append(empty.untyped_storage())
            return empty
        if func._schema.is_mutable and isinstance(args[0], Tensor) and args[0].is_meta:
            self._note(func, args[0], args[1:], kwargs)
        return func(*args, **kwargs)

    def _note(self, func: Any, target: Tensor, args: Any, kwargs: Any) -> None:
        is_random = torch.Tag.nondeterministic_seeded in func.tags
        state = torch.get_rng_state() if is_random else None
        place = target.size(), target.stride(), target.storage_offset()

        def filling(whole: Tensor) -> None:
            if state is not None:
                torch.set_rng_state(state)
            func(whole.as_strided(*place), *args, **kwargs)

        fillings = self._fillings[_address(target)]
        if func.overloadpacket.__name__ in _OVERWRITING and target.nbytes == target.untyped_storage().nbytes():
            fillings.clear()
        fillings.append(filling)
        if is_random:
            func(torch.empty(target.size(), dtype=target.dtype), *args, **kwargs)

    @torch.no_grad()
    def fill(self, part: nn.Module) -> None:
        """Give the tensors of a part memory on the CPU, and the values they would have had; tied ones stay tied.

        Tensors that have memory, or are shards, are left alone.
        """
        filled: dict[int, Tensor] = {}
        with torch.random.fork_rng(devices=[]):
            for module in part.modules():
                own = [*module.named_parameters(recurse=False), *module.named_buffers(recurse=False)]
                for name, tensor in own:
                    if tensor.is_meta:
                        address = _address(tensor)
                        if address not in filled:
                            filled[address] = self._filled(tensor, address)
                        setattr(module, name, filled[address])

    def _filled(self, tensor: Tensor, address: int) -> Tensor:
        whole = torch.empty(tensor.size(), dtype=tensor.dtype)
        for filling in self._fillings[address]:
            filling(whole)
        return nn.Parameter(whole, tensor.requires_grad) if isinstance(tensor, nn.Parameter) else whole


def _address(tensor: Tensor) -> int:
    return int(tensor.untyped_storage()._cdata)
