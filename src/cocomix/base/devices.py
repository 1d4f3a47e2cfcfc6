"""The device that a process computes on, and the peak rates of known accelerators.

Peaks are the manufacturers' figures for dense products (no structured sparsity), in FLOP/s.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from typing import Literal

import torch

from cocomix.base.errors import CocomixError

DeviceChoice = Literal["auto", "cpu", "cuda"]


@dataclass(frozen=True)
class DeviceSpec:
    """An accelerator's data sheet."""

    name: str
    """Name on the command line."""
    bfloat16_flops: float
    """Peak of dense bfloat16 products, in FLOP/s."""
    float32_flops: float
    """Peak of float32 products without TF32, torch's default, in FLOP/s."""
    memory_bytes: int
    """Memory of the device."""


def _spec(name: str, bfloat16_tflops: float, float32_tflops: float, memory_gb: int) -> DeviceSpec:
    return DeviceSpec(name, bfloat16_tflops * 1e12, float32_tflops * 1e12, memory_gb * 10**9)


#: Keys are words in the driver's name of the device; the first that matches counts.
_SPECS = {
    "B200": _spec("b200", 2250, 75, 180),
    "GH200": _spec("gh200", 989, 67, 96),
    "H200": _spec("h200", 989, 67, 141),
    "H100 NVL": _spec("h100-nvl", 835, 60, 94),
    "H100 PCIe": _spec("h100-pcie", 756, 51, 80),
    "H100": _spec("h100", 989, 67, 80),
    "A100-SXM4-40GB": _spec("a100-40gb", 312, 19.5, 40),
    "A100-PCIE-40GB": _spec("a100-40gb", 312, 19.5, 40),
    "A100": _spec("a100", 312, 19.5, 80),
    "L40S": _spec("l40s", 362, 91.6, 48),
    "L40": _spec("l40", 181, 90.5, 48),
    "L4": _spec("l4", 121, 30.3, 24),
    "A40": _spec("a40", 149.7, 37.4, 48),
    "A10G": _spec("a10g", 70, 31.5, 24),
    "A10": _spec("a10", 125, 31.2, 24),
    "RTX 4090": _spec("rtx-4090", 165.2, 82.6, 24),
    "RTX 3090": _spec("rtx-3090", 71, 35.6, 24),
    "MI300X": _spec("mi300x", 1307, 163.4, 192),
}


def known_devices() -> dict[str, DeviceSpec]:
    """Every accelerator in the table, by name."""
    return {spec.name: spec for spec in _SPECS.values()}


def device_spec(device: torch.device) -> DeviceSpec | None:
    """The accelerator's data sheet; None for a CPU or an accelerator that is not in the table."""
    if device.type != "cuda":
        return None
    name = torch.cuda.get_device_name(device)
    return next((spec for words, spec in _SPECS.items() if re.search(rf"\b{words}\b", name)), None)


def this_device(choice: DeviceChoice = "auto") -> torch.device:
    """This process's device; with CUDA, the one with `torchrun`'s LOCAL_RANK, which becomes the current device.

    Raises:
        CocomixError: `cuda` was chosen but there is none, or this machine runs more processes than it has devices.
    """
    if choice == "cpu" or not torch.cuda.is_available():
        if choice == "cuda":
            raise CocomixError("parallel.device is cuda, but torch finds no CUDA device; use cpu, or auto")
        return torch.device("cpu")
    index, count = int(os.environ.get("LOCAL_RANK", "0")), torch.cuda.device_count()
    if index >= count:
        raise CocomixError(f"more processes than devices on this machine: give torchrun --nproc-per-node {count}")
    torch.cuda.set_device(index)
    return torch.device("cuda", index)
