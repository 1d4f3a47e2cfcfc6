"""The device that a process computes on, and the precision of its matrix products.

`bfloat16` is torch's autocast: each product rounds its operands to bfloat16 and adds up in float32. All else is float32.
"""

from __future__ import annotations

import contextlib
import os
import re
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import torch

from cocomix.base import artifacts
from cocomix.base.accelerators import SPECS, DeviceSpec
from cocomix.base.compute import ComputeConfig, DeviceChoice, Precision, PrecisionChoice
from cocomix.base.errors import CocomixError
from cocomix.base.progress import say

#: `auto` measures both precisions in turn, in rounds until this time has passed: some processors need a hundred times
#: as long in bfloat16. A few rounds there are in any case: on a busy machine a single one tells nothing.
MEASURED_SECONDS, MIN_ROUNDS = 0.02, 5
#: Largest product that it measures.
MAX_ROWS, MAX_WIDTH = 128, 1024


@dataclass(frozen=True)
class Machine:
    """Where a command runs its models, and how it multiplies."""

    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    precision: Precision = "float32"

    def products(self) -> contextlib.AbstractContextManager[None]:
        """Context in which matrix products have the precision."""
        if self.precision == "float32":
            return contextlib.nullcontext()
        return torch.autocast(self.device.type, dtype=torch.bfloat16)

    @property
    def settings(self) -> dict[str, str]:
        """What of this a result depends on, for its folder's settings; nothing in float32, as in earlier versions."""
        return {} if self.precision == "float32" else {"precision": self.precision}


def this_machine(config: ComputeConfig, size: Callable[[], tuple[int, int]], output: Path | None = None) -> Machine:
    """This process's device, and the precision that its products take.

    Args:
        config: the command's options.
        size: rows and width of a typical product, asked for if `auto` has to measure.
        output: folder that the command may have begun before, whose precision `auto` then keeps.

    Raises:
        CocomixError: as `this_device`.
    """
    device = this_device(config.device)
    return Machine(device, chosen_precision(config.precision, device, size, output))


def chosen_precision(
    choice: PrecisionChoice, device: torch.device, size: Callable[[], tuple[int, int]], output: Path | None = None
) -> Precision:
    """The precision; for `auto`, which says what it takes, see `this_machine`."""
    if choice != "auto":
        return choice
    if output is not None and (output / artifacts.SETTINGS_NAME).exists():
        precision: Precision = artifacts.read_header(output)["settings"].get("precision", "float32")
        say(f"precision auto: {precision}, as {output} was begun in")
        return precision
    if device.type == "cuda":
        is_faster = torch.cuda.is_bf16_supported(including_emulation=False)
        reason = f"which {torch.cuda.get_device_name(device)} {'multiplies' if is_faster else 'does not multiply'}"
        say(f"precision auto: {'bfloat16, ' if is_faster else 'float32: not bfloat16, '}{reason}")
        return "bfloat16" if is_faster else "float32"
    num_rows, width = (min(length, most) for length, most in zip(size(), (MAX_ROWS, MAX_WIDTH), strict=True))
    ratio = bfloat16_speed(num_rows, width)
    precision = "bfloat16" if ratio > 1 else "float32"
    product = f"a product of {num_rows} rows of width {width}"
    say(
        f"precision auto: {precision}; bfloat16 takes {1 / ratio:.2f} of float32's time for {product} on this processor"
    )
    return precision


def plain_products(device: torch.device) -> contextlib.AbstractContextManager[None]:
    """Context in which matrix products have the dtype of their operands, whatever surrounds it."""
    return contextlib.nullcontext() if rounded_dtype(device) is None else torch.autocast(device.type, enabled=False)


def rounded_dtype(device: torch.device) -> torch.dtype | None:
    """The dtype to which the operands of matrix products are rounded here; None: they are not."""
    if torch.amp.is_autocast_available(device.type) and torch.is_autocast_enabled(device.type):
        return torch.get_autocast_dtype(device.type)
    return None


def bfloat16_speed(num_rows: int, width: int) -> float:
    """How many times as fast this processor multiplies [num_rows, width] by [width, width] in bfloat16 as in float32.

    Rows are rounded on the way, as in autocast; the best of some rounds counts.
    """
    x, weight = torch.ones(num_rows, width), torch.ones(width, width)
    rounded = weight.bfloat16()
    products: tuple[Callable[[], object], ...] = (lambda: x @ weight, lambda: x.bfloat16() @ rounded)
    times: list[list[float]] = [[], []]
    while len(times[0]) < MIN_ROUNDS or sum(map(sum, times)) < MEASURED_SECONDS:
        for product, seconds in zip(products, times, strict=True):
            started = time.perf_counter()
            product()
            seconds.append(time.perf_counter() - started)
    return min(times[0]) / min(times[1])


def sent(tensor: torch.Tensor, device: torch.device | str) -> torch.Tensor:
    """A tensor on another device; on the way to an accelerator, what that still computes is not waited for."""
    return tensor.to(device, non_blocking=torch.device(device).type != "cpu")


def device_spec(device: torch.device) -> DeviceSpec | None:
    """The accelerator's data sheet; None for a CPU or an accelerator that is not in the table."""
    if device.type != "cuda":
        return None
    name = torch.cuda.get_device_name(device)
    return next((spec for words, spec in SPECS.items() if re.search(rf"\b{words}\b", name)), None)


def this_device(choice: DeviceChoice = "auto") -> torch.device:
    """This process's device; with CUDA, the one with `torchrun`'s LOCAL_RANK, which becomes the current device.

    Raises:
        CocomixError: `cuda` was chosen but there is none, or this machine runs more processes than it has devices.
    """
    if choice == "cpu" or not torch.cuda.is_available():
        if choice == "cuda":
            raise CocomixError("device is cuda, but torch finds no CUDA device; use --device cpu, or auto")
        return torch.device("cpu")
    index, count = int(os.environ.get("LOCAL_RANK", "0")), torch.cuda.device_count()
    if index >= count:
        raise CocomixError(f"more processes than devices on this machine: give torchrun --nproc-per-node {count}")
    torch.cuda.set_device(index)
    return torch.device("cuda", index)


def memory_bytes(device: torch.device) -> int:
    """Memory of an accelerator, or of this machine."""
    if device.type == "cuda":
        return int(torch.cuda.get_device_properties(device).total_memory)
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
