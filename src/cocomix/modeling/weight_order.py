"""The order of weights in memory, for models that write one token at a time.

The product of one row and a weight reads the whole weight and does little else. Whether it is faster with the rows or the
columns of the weight side by side depends on the processor, on its library of products and on the shape, by factors up to
three either way. So both are tried. Only strides change: names, shapes, values and saved files stay as they are.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from typing import cast

import torch
from jaxtyping import Float
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from cocomix.mixers.base import Mixer

# Shapes: D input, E output.

#: Elements of the smallest weight that is worth it.
MIN_ELEMENTS = 2**18

#: Elements of the largest weight that is timed; of a larger one, a part is.
MAX_TIMED_ELEMENTS = 2**22

#: The other order is taken if it is so many times as fast, so that chance decides nothing.
MIN_GAIN = 1.25

_REPETITIONS = 5


@torch.no_grad()
def order_for_single_tokens(model: nn.Module) -> None:
    """Reorder a model's weights in place where that makes products of one row faster on this CPU; elsewhere do nothing.

    It takes a second for a hundred million parameters. Sums in another order round differently. Other passes, such as
    those of training, can become slower: for models that stay as they are, and only write.

    Args:
        model: any model, on any device.
    """
    is_faster: dict[tuple[object, ...], bool] = {}
    for weight, is_transposed in {id(found[0]): found for found in _weights(model)}.values():
        if weight.device.type != "cpu" or weight.numel() < MIN_ELEMENTS:
            continue
        kind = (weight.shape, weight.stride(), weight.dtype, is_transposed)
        if kind not in is_faster:
            is_faster[kind] = _other_is_faster(weight.t() if is_transposed else weight)
        if is_faster[kind]:
            weight.data = _other_order(weight.data)


def _weights(model: nn.Module) -> Iterator[tuple[nn.Parameter, bool]]:
    """The weights with which tokens are multiplied, and whether they are [out, in] rather than [in, out]."""
    for module in model.modules():
        if type(module) in (nn.Linear, Conv1D):
            yield cast(nn.Parameter, module.weight), type(module) is nn.Linear
        elif isinstance(module, Mixer):
            yield from ((weight, True) for weight in module.linear_weights())


def _other_is_faster(weight: Float[Tensor, "D E"]) -> bool:
    """Whether one row is multiplied faster by a weight [in, out] in the other order."""
    part = weight[:, : max(1, MAX_TIMED_ELEMENTS // len(weight))]
    return MIN_GAIN * _seconds(_other_order(part)) < _seconds(part)


def _seconds(weight: Float[Tensor, "D E"]) -> float:
    row, best = torch.ones(1, len(weight), dtype=weight.dtype), math.inf
    for _ in range(_REPETITIONS):
        started = time.perf_counter()
        torch.mm(row, weight)
        best = min(best, time.perf_counter() - started)
    return best


def _other_order(weight: Float[Tensor, "D E"]) -> Float[Tensor, "D E"]:
    return weight.t().contiguous().t() if weight.stride(1) == 1 else weight.contiguous()
