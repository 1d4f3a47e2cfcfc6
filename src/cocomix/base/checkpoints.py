"""Checkpoints of a run: tensors as torch's distributed checkpoints in safetensors, the rest as JSON, whole or not at all.

Every rank writes its own share of the tensors, and reads its own share of what any number of ranks wrote, sharded or not. A
checkpoint is written aside and renamed when complete; `latest` takes the newest one whose checksums hold, so a
half-written or damaged checkpoint costs some steps and never the run.

(The index that torch writes by default is a pickle; `HuggingFaceStorageWriter` needs none.)
"""

from __future__ import annotations

import contextlib
import functools
import shutil
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.checkpoint import state_dict_loader, state_dict_saver
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageReader, HuggingFaceStorageWriter
from torch.distributed.checkpoint.metadata import TensorStorageMetadata

from cocomix.base.artifacts import fingerprint_of_json, read_json, sha256_of_file, write_json
from cocomix.base.errors import CocomixError, reason_of
from cocomix.base.progress import say
from cocomix.base.ranks import Ranks

FOLDER = "checkpoints"
META = "meta.json"
#: A file is put together in memory before it is written, so a rank with more than this writes several.
MAX_FILE_BYTES = 2**31


@dataclass(frozen=True)
class Checkpoint:
    """A whole checkpoint."""

    folder: Path
    meta: dict[str, Any]
    """What was saved beside the tensors."""
    ranks: Ranks

    @property
    def shapes(self) -> dict[str, torch.Size]:
        """Shape of every tensor by its name."""
        stored = self._reader().read_metadata().state_dict_metadata
        return {name: entry.size for name, entry in stored.items() if isinstance(entry, TensorStorageMetadata)}

    def read_into(self, tensors: Mapping[str, Tensor]) -> None:
        """Overwrite tensors with what is stored under their names; of sharded ones, this rank's share."""
        with _alone(self.ranks):
            state_dict_loader.load(dict(tensors), storage_reader=self._reader(), no_dist=self.ranks.size == 1)

    def _reader(self) -> HuggingFaceStorageReader:
        return HuggingFaceStorageReader(str(self.folder))


class Checkpoints:
    """Checkpoints in `output/checkpoints`.

    Args:
        output: folder of the run, the same one for all ranks.
        keep: how many of the newest to keep.
        ranks: who save and load together.
    """

    def __init__(self, output: Path, keep: int = 2, ranks: Ranks | None = None) -> None:
        self.folder = output / FOLDER
        self.keep = keep
        self.ranks = ranks or Ranks()
        self._damaged: set[Path] = set()

    def save(self, step: int, tensors: Mapping[str, Tensor], meta: Mapping[str, Any]) -> None:
        """Write the state after `step` steps; all ranks together.

        Raises:
            CocomixError: it can't be written; what was there before is still there.
        """
        saved = self.folder / f"step-{step:09d}"
        write_state(saved, tensors, {**meta, "step": step}, self.ranks)
        if self.ranks.is_first:
            damaged = self._damaged - {saved}
            whole = [folder for folder in self._steps() if folder not in damaged]
            for old in (*damaged, *whole[: -self.keep]):
                shutil.rmtree(old, ignore_errors=True)
            self._damaged.clear()

    def latest(self) -> Checkpoint | None:
        """The newest whole checkpoint, the same one on every rank; None if there is none."""
        for folder in reversed(self.ranks.from_first(self._steps)):
            meta = self.ranks.from_first(functools.partial(_meta_of, folder))
            if meta is not None and self.ranks.all(self._holds(folder, meta["sha256"])):
                return Checkpoint(folder, meta, self.ranks)
            if self.ranks.is_first:
                say(f"{folder} is damaged; trying the checkpoint before it")
                self._damaged.add(folder)
        return None

    def clear(self) -> None:
        """Remove all: the run is finished."""
        shutil.rmtree(self.folder, ignore_errors=True)

    def _steps(self) -> list[Path]:
        return sorted(self.folder.glob("step-*")) if self.folder.exists() else []

    def _holds(self, folder: Path, checksums: Mapping[str, str]) -> bool:
        """Whether this rank's part of the files is as it was written."""
        mine = sorted(checksums)[self.ranks.rank :: self.ranks.size]
        try:
            return all(sha256_of_file(folder / name) == checksums[name] for name in mine)
        except OSError:
            return False


def write_state(folder: Path, tensors: Mapping[str, Tensor], meta: Mapping[str, Any], ranks: Ranks) -> None:
    """Write tensors and `meta.json` into a folder that is there whole or not at all; all ranks together.

    Raises:
        CocomixError: it can't be written.
    """
    partial = folder.with_name(f".{folder.name}.partial")
    writer = HuggingFaceStorageWriter(str(partial), _files_of(tensors), save_distributed=True)
    try:
        ranks.from_first(lambda: _make_empty(partial))
        with _alone(ranks):
            state_dict_saver.save(dict(tensors), storage_writer=writer, no_dist=ranks.size == 1)
        mine = {path.name: sha256_of_file(path) for path in partial.glob(f"shard-{ranks.rank + 1:05d}-*")}
        checksums = {name: value for part in ranks.gather(mine) for name, value in part.items()}
        ranks.from_first(lambda: _complete(partial, folder, {**meta, "sha256": checksums}))
    except (OSError, CheckpointException) as error:
        if ranks.is_first:
            shutil.rmtree(partial, ignore_errors=True)
        raise CocomixError(
            f"{folder} can't be written ({_cause_of(error)}); what was saved before it is whole: mend that and run the same "
            "command again"
        ) from error


def state_of(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """Parameters and optimizer state as one flat dictionary, named by parameter; tied weights once."""
    tensors = {}
    for name, parameter in model.named_parameters():
        tensors[f"model/{name}"] = parameter.detach()
        for key, value in optimizer.state.get(parameter, {}).items():
            tensors[f"optimizer/{key}/{name}"] = value
    return tensors


def restore_state(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    checkpoint: Checkpoint,
    extra: Mapping[str, Tensor] | None = None,
) -> None:
    """The inverse of `state_of`, for a model and optimizer built with the same settings, sharded or not.

    Args:
        model: overwritten in place.
        optimizer: its state is made anew.
        checkpoint: where from.
        extra: further tensors to overwrite, which were saved beside the state.
    """
    parameters = dict(model.named_parameters())
    tensors = {f"model/{name}": parameter.detach() for name, parameter in parameters.items()} | dict(extra or {})
    for name, shape in checkpoint.shapes.items():
        if name.startswith("optimizer/"):
            _, key, parameter_name = name.split("/", 2)
            parameter = parameters[parameter_name].detach()
            # Moments are sharded as their parameter is; the count of steps is a number.
            is_moment = shape == parameter.shape
            value = torch.zeros_like(parameter) if is_moment else torch.zeros(shape, device=parameter.device)
            optimizer.state[parameters[parameter_name]][key] = tensors[name] = value
    checkpoint.read_into(tensors)


@contextlib.contextmanager
def _alone(ranks: Ranks) -> Iterator[None]:
    """A single process has no process group; torch warns about that although it was told so."""
    with warnings.catch_warnings():
        if ranks.size == 1:
            warnings.filterwarnings("ignore", "torch.distributed is disabled")
        yield


def _files_of(tensors: Mapping[str, Tensor]) -> dict[str, int]:
    """Which file of its rank each tensor goes to, counted from 1."""
    files, index, num_bytes = {}, 1, 0
    for name, tensor in tensors.items():
        size = tensor.numel() * tensor.element_size()
        if num_bytes and num_bytes + size > MAX_FILE_BYTES:
            index, num_bytes = index + 1, 0
        files[name], num_bytes = index, num_bytes + size
    return files


def _make_empty(folder: Path) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)


def _complete(partial: Path, folder: Path, meta: Mapping[str, Any]) -> None:
    """Metadata last, then the name by which it counts."""
    write_json(partial / META, {**meta, "fingerprint": fingerprint_of_json(meta)})
    shutil.rmtree(folder, ignore_errors=True)
    partial.rename(folder)


def _meta_of(folder: Path) -> dict[str, Any] | None:
    """What a checkpoint says about itself; None for a damaged one."""
    try:
        meta = read_json(folder / META)
    except (OSError, CocomixError):
        return None
    if not isinstance(meta, dict):
        return None
    fingerprint = meta.pop("fingerprint", None)
    return meta if fingerprint == fingerprint_of_json(meta) else None


def _cause_of(error: OSError | CheckpointException) -> str:
    """The reason within torch's report, which names one a rank."""
    if isinstance(error, CheckpointException):
        failure = next((failure for failure, _ in error.failures.values()), None)
        return reason_of(failure) if isinstance(failure, Exception) else "unknown"
    return reason_of(error)
