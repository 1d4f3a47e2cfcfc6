"""Checkpoints of a run: tensors as safetensors, the rest as JSON, whole or not at all.

A checkpoint is written aside and renamed when complete; `latest` takes the newest one whose checksum holds, so a
half-written or damaged checkpoint costs some steps and never the run.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from cocomix.base.artifacts import read_json, sha256_of_file, write_json
from cocomix.base.errors import CocomixError
from cocomix.base.progress import say

FOLDER = "checkpoints"
_TENSORS = "state.safetensors"
_META = "meta.json"


class Checkpoints:
    """Checkpoints in `output/checkpoints`.

    Args:
        output: folder of the run.
        keep: how many of the newest to keep.
    """

    def __init__(self, output: Path, keep: int = 2) -> None:
        self.folder = output / FOLDER
        self.keep = keep

    def save(self, step: int, tensors: Mapping[str, Tensor], meta: Mapping[str, Any]) -> None:
        """Write the state after `step` steps."""
        final = self.folder / f"step-{step:09d}"
        partial = self.folder / f".{final.name}.partial"
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, partial / _TENSORS)
        write_json(partial / _META, {**meta, "step": step, "sha256": sha256_of_file(partial / _TENSORS)})
        shutil.rmtree(final, ignore_errors=True)
        partial.rename(final)
        for old in self._steps()[: -self.keep]:
            shutil.rmtree(old, ignore_errors=True)

    def latest(self) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
        """Tensors and metadata of the newest whole checkpoint; None if there is none."""
        for folder in reversed(self._steps()):
            try:
                meta = read_json(folder / _META)
                if sha256_of_file(folder / _TENSORS) == meta["sha256"]:
                    return load_file(folder / _TENSORS), meta
            except (OSError, CocomixError, KeyError):
                pass
            say(f"{folder} is damaged; trying the checkpoint before it")
        return None

    def clear(self) -> None:
        """Remove all: the run is finished."""
        shutil.rmtree(self.folder, ignore_errors=True)

    def _steps(self) -> list[Path]:
        return sorted(self.folder.glob("step-*")) if self.folder.exists() else []


def state_of(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """Parameters and optimizer state as one flat dictionary, named by parameter; tied weights once."""
    tensors = {}
    for name, parameter in model.named_parameters():
        tensors[f"model/{name}"] = parameter.detach()
        for key, value in optimizer.state.get(parameter, {}).items():
            tensors[f"optimizer/{key}/{name}"] = value
    return tensors


@torch.no_grad()
def restore_state(model: nn.Module, optimizer: torch.optim.Optimizer, tensors: Mapping[str, Tensor]) -> None:
    """The inverse of `state_of`, for a model and optimizer built with the same settings."""
    for name, parameter in model.named_parameters():
        parameter.copy_(tensors[f"model/{name}"])
    for key, value in tensors.items():
        if key.startswith("optimizer/"):
            _, state_name, name = key.split("/", 2)
            optimizer.state[model.get_parameter(name)][state_name] = value.clone()
