"""What a plan says of activations is what real passes keep."""

from __future__ import annotations

import weakref
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from cocomix.modeling.model import CoCoMixForCausalLM
from cocomix.planning.memory import Precision, device_memory, saved_bytes
from cocomix.planning.recipes import Draft, find_recipe
from cocomix.planning.sizes import SIZES
from cocomix.training.students import build_student

SIZE = SIZES["small"]
T = SIZE.context_length


def draft(variant: str) -> Draft:
    return find_recipe(f"gpt2-small-{variant}").draft()


def model(variant: str) -> CoCoMixForCausalLM:
    return build_student(draft(variant), SIZE, SIZE.num_concepts).train()


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize("variant", ["ntp", "cocomix", "add", "mix-only"])
def test_tensors_without_numbers_keep_what_real_ones_keep(variant: str, precision: Precision) -> None:
    num_labels = 0 if variant in ("ntp", "mix-only") else 4
    real = saved_bytes(model(variant), 2, T, precision, num_labels)
    with FakeTensorMode():
        planned = saved_bytes(model(variant), 2, T, precision, num_labels)
    assert planned == real
    assert all(block >= given > 0 for block, given in zip(real.blocks, real.inputs, strict=True))


class _Peak(TorchDispatchMode):
    """The most bytes that tensors made under it held at one time."""

    def __init__(self) -> None:
        super().__init__()
        self.now = self.most = 0
        self.alive: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        found = func(*args, **(kwargs or {}))
        for tensor in found if isinstance(found, tuple | list) else (found,):
            if isinstance(tensor, Tensor):
                self._note(tensor.untyped_storage())
        return found

    def _note(self, storage: torch.UntypedStorage) -> None:
        key, size = storage._cdata, storage.nbytes()
        if key in self.alive:
            return
        self.alive.add(key)
        self.now += size
        self.most = max(self.most, self.now)
        weakref.finalize(storage, self._forget, key, size)

    def _forget(self, key: int, size: int) -> None:
        self.alive.discard(key)
        self.now -= size


@pytest.mark.parametrize("variant", ["ntp", "cocomix"])
def test_the_peak_of_a_real_step_is_near_the_plans(variant: str) -> None:
    student, B = model(variant), SIZE.batch_size
    ids = torch.zeros(B, T, dtype=torch.long)
    concepts = torch.zeros(B, T, 4, dtype=torch.long) if variant == "cocomix" else None
    with _Peak() as peak:
        student(input_ids=ids, labels=ids, concept_labels=concepts).loss.backward()
    planned = device_memory(draft(variant), SIZE, SIZE.num_concepts, 1, B, teacher=0)
    ratio = peak.most / (planned.activations + planned.logits)
    print(f"{variant}: real peak over planned {ratio:.3f}")
    # The first gradients of weights, and the operands of single operations, come on top.
    assert 0.98 < ratio < 1.04
