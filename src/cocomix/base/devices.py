"""The device that a process computes on."""

from __future__ import annotations

import os
import re
from typing import Literal

import torch

from cocomix.base.accelerators import SPECS, DeviceSpec
from cocomix.base.errors import CocomixError

DeviceChoice = Literal["auto", "cpu", "cuda"]


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
            raise CocomixError("parallel.device is cuda, but torch finds no CUDA device; use cpu, or auto")
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
