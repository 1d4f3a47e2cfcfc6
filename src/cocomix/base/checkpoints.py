"""Checkpoints of a run: tensors as torch's distributed checkpoints in safetensors, the rest as JSON.

Every rank writes its share of the tensors, and reads its share of what any number of ranks wrote, sharded or not. A
checkpoint is written under a temporary name and renamed when complete; `latest` takes the newest one whose checksums match,
so a half-written or damaged checkpoint costs some steps, never the run. It holds the fingerprint of the settings it was
written with, so that no run continues another one.

(The index that torch writes by default is a pickle; `HuggingFaceStorageWriter` needs none.)
"""

from __future__ import annotations

import contextlib
import functools
import shutil
import warnings
from collections.abc import Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.distributed.checkpoint import state_dict_loader, state_dict_saver
from torch.distributed.checkpoint._consolidate_hf_safetensors import consolidate_safetensors_files
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageReader, HuggingFaceStorageWriter
from torch.distributed.checkpoint.metadata import TensorStorageMetadata
from torch.distributed.checkpoint.staging import BlockingAsyncStager

from cocomix.base.artifacts import fingerprint_of_settings, is_sealed, read_json, sealed, sha256_of_file, write_json
from cocomix.base.errors import CocomixError, reason_of
from cocomix.base.progress import say
from cocomix.base.ranks import Ranks

CHECKPOINTS_FOLDER = "checkpoints"
META_NAME = "meta.json"
#: Files are assembled in memory before they are written, so a rank with more bytes than this writes several.
MAX_FILE_BYTES = 2**31


@dataclass(frozen=True)
class Checkpoint:
    """A complete checkpoint."""

    folder: Path
    meta: dict[str, Any]
    """Values that were saved beside the tensors."""
    ranks: Ranks

    @property
    def shapes(self) -> dict[str, torch.Size]:
        """Shape of every tensor, by name."""
        stored = self._reader().read_metadata().state_dict_metadata
        return {name: entry.size for name, entry in stored.items() if isinstance(entry, TensorStorageMetadata)}

    def read_into(self, tensors: Mapping[str, Tensor]) -> None:
        """Overwrite tensors in place with the stored ones of the same names; sharded tensors get this rank's share."""
        with without_process_group(self.ranks):
            state_dict_loader.load(dict(tensors), storage_reader=self._reader(), no_dist=self.ranks.size == 1)

    def _reader(self) -> HuggingFaceStorageReader:
        return HuggingFaceStorageReader(str(self.folder))


class Checkpoints:
    """Checkpoints in `output/checkpoints`.

    Args:
        output: folder of the run, the same on all ranks.
        settings: settings that determine the run's result.
        keep: number of newest checkpoints to keep.
        ranks: ranks that save and load together.
        in_background: whether `save` returns once the tensors are copied, and a thread writes them.
    """

    def __init__(
        self,
        output: Path,
        settings: Mapping[str, Any],
        keep: int = 2,
        ranks: Ranks | None = None,
        *,
        in_background: bool = False,
    ) -> None:
        self.folder = output / CHECKPOINTS_FOLDER
        self.made_with = fingerprint_of_settings(settings)
        self.keep = keep
        self.ranks = ranks or Ranks()
        self._damaged: set[Path] = set()
        self._thread = ThreadPoolExecutor(1) if in_background else None
        # Each thread exchanges over a group of its own, or one's messages would answer the other's.
        self._writers = self.ranks.beside() if in_background else self.ranks
        self._pending: Future[None] | None = None

    def save(self, step: int, tensors: Mapping[str, Tensor], meta: Mapping[str, Any]) -> None:
        """Write the state after `step` steps, or begin to, once the one before is written; called on all ranks.

        Raises:
            CocomixError: a checkpoint, in the background the one before, can't be written; earlier ones are intact.
        """
        self.wait()
        if self._thread is None:
            self._write(step, tensors, meta)
        else:
            copied = BlockingAsyncStager().stage(dict(tensors))
            self._pending = self._thread.submit(self._write, step, copied, meta)

    def wait(self) -> None:
        """Wait until the checkpoint that a thread writes is whole, and raise what it met."""
        pending, self._pending = self._pending, None
        if pending is not None:
            pending.result()

    @contextlib.contextmanager
    def written(self) -> Iterator[None]:
        """Context at whose end no thread writes any more; what one met is raised unless something else is."""
        try:
            yield
            self.wait()
        finally:
            if self._thread is not None:
                self._thread.shutdown()

    def _write(self, step: int, tensors: Mapping[str, Tensor], meta: Mapping[str, Any]) -> None:
        saved = self.folder / f"step-{step:09d}"
        write_state(saved, tensors, {**meta, "step": step, "made_with": self.made_with}, self._writers)
        if self.ranks.is_first:
            damaged = self._damaged - {saved}
            whole = [folder for folder in self._steps() if folder not in damaged]
            for old in (*damaged, *whole[: -self.keep]):
                shutil.rmtree(old, ignore_errors=True)
            self._damaged.clear()

    def latest(self) -> Checkpoint | None:
        """The newest undamaged checkpoint, the same on every rank; None if there is none.

        Raises:
            CocomixError: it was written with other settings.
        """
        for folder in reversed(self.ranks.on_first_rank(self._steps)):
            meta = self.ranks.on_first_rank(functools.partial(_read_meta, folder))
            if meta is not None and self.ranks.all(self._is_intact(folder, meta["sha256"])):
                # Version 0.1 recorded no settings.
                if meta.get("made_with", self.made_with) != self.made_with:
                    raise CocomixError(
                        f"{folder} belongs to a run with other settings; move it out of there and run the same command again"
                    )
                return Checkpoint(folder, meta, self.ranks)
            if self.ranks.is_first:
                say(f"{folder} is damaged; trying the checkpoint before it")
                self._damaged.add(folder)
        return None

    def _steps(self) -> list[Path]:
        return sorted(self.folder.glob("step-*")) if self.folder.exists() else []

    def _is_intact(self, folder: Path, checksums: Mapping[str, str]) -> bool:
        """Whether this rank's share of the files matches its checksums."""
        own_names = sorted(checksums)[self.ranks.rank :: self.ranks.size]
        try:
            return all(sha256_of_file(folder / name) == checksums[name] for name in own_names)
        except OSError:
            return False


def clear_checkpoints(output: Path) -> None:
    """Remove all checkpoints of a finished run."""
    shutil.rmtree(output / CHECKPOINTS_FOLDER, ignore_errors=True)


def write_state(folder: Path, tensors: Mapping[str, Tensor], meta: Mapping[str, Any], ranks: Ranks) -> None:
    """Write tensors and `meta.json` into a folder that appears only when complete; called on all ranks.

    Raises:
        CocomixError: the folder can't be written.
    """
    partial = folder.with_name(f".{folder.name}.partial")
    writer = HuggingFaceStorageWriter(str(partial), _file_numbers(tensors), save_distributed=True)
    try:
        ranks.on_first_rank(lambda: _make_empty(partial))
        with without_process_group(ranks):
            state_dict_saver.save(
                dict(tensors), storage_writer=writer, process_group=ranks.group, no_dist=ranks.size == 1
            )
        own_checksums = {path.name: sha256_of_file(path) for path in partial.glob(f"shard-{ranks.rank + 1:05d}-*")}
        checksums = {name: value for part in ranks.gather(own_checksums) for name, value in part.items()}
        ranks.on_first_rank(lambda: _complete(partial, folder, {**meta, "sha256": checksums}))
    except (OSError, CheckpointException) as error:
        if ranks.is_first:
            shutil.rmtree(partial, ignore_errors=True)
        raise CocomixError(
            f"{folder} can't be written ({_cause_of(error)}); earlier checkpoints are intact: fix this and run the same "
            "command again"
        ) from error


def whole_tensors(folder: Path) -> dict[str, Tensor]:
    """The tensors that ranks wrote with `write_state`, put together in a file below `folder` and mapped from there."""
    whole = folder / "whole"
    whole.mkdir()
    names = HuggingFaceStorageReader(str(folder)).read_metadata().state_dict_metadata
    consolidate_safetensors_files(str(folder), str(whole), dict.fromkeys(names, 1))
    (file,) = whole.glob("*.safetensors")
    tensors: dict[str, Tensor] = load_file(file)
    return tensors


def training_state(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """Parameters that learn and optimizer state as one flat dictionary, named by parameter; tied weights appear once."""
    tensors = {}
    for name, parameter in _learning(model).items():
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
    """The inverse of `training_state`, for a model and optimizer built with the same settings, sharded or not.

    Args:
        model: model whose parameters are overwritten in place.
        optimizer: optimizer whose state is created anew.
        checkpoint: checkpoint to read from.
        extra: further tensors to overwrite, by the names they were saved under.
    """
    parameters = _learning(model)
    tensors = {f"model/{name}": parameter.detach() for name, parameter in parameters.items()} | dict(extra or {})
    for name, shape in checkpoint.shapes.items():
        if name.startswith("optimizer/"):
            _, key, parameter_name = name.split("/", 2)
            parameter = parameters[parameter_name].detach()
            # Moments are sharded like their parameter; the step count is a scalar.
            is_moment = shape == parameter.shape
            value = torch.zeros_like(parameter) if is_moment else torch.zeros(shape, device=parameter.device)
            optimizer.state[parameters[parameter_name]][key] = tensors[name] = value
    checkpoint.read_into(tensors)


def _learning(model: nn.Module) -> dict[str, nn.Parameter]:
    """The parameters that are not frozen, by name; frozen ones are as they were loaded."""
    return {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}


@contextlib.contextmanager
def without_process_group(ranks: Ranks) -> Iterator[None]:
    """Silence torch's warning that a single process has no process group, which it gives even with `no_dist`."""
    with warnings.catch_warnings():
        if ranks.size == 1:
            warnings.filterwarnings("ignore", "torch.distributed is disabled")
        yield


def _file_numbers(tensors: Mapping[str, Tensor]) -> dict[str, int]:
    """The 1-based number of the file, among its rank's, that each tensor goes to."""
    files, index, num_bytes = {}, 1, 0
    for name, tensor in tensors.items():
        size = tensor.numel() * tensor.element_size()
        if num_bytes and num_bytes + size > MAX_FILE_BYTES:
            index, num_bytes = index + 1, 0
        files[name], num_bytes = index, num_bytes + size
    return files


def _make_empty(folder: Path) -> None:
    """Make the folder and, for a first checkpoint, its parent; above that the run's folder, if deleted, stays so."""
    shutil.rmtree(folder, ignore_errors=True)
    if not folder.parent.exists():
        folder.parent.mkdir()
    folder.mkdir()


def _complete(partial: Path, folder: Path, meta: Mapping[str, Any]) -> None:
    """Write the metadata last, then rename the folder, which makes the checkpoint valid."""
    write_json(partial / META_NAME, sealed(meta, "fingerprint"))
    shutil.rmtree(folder, ignore_errors=True)
    partial.rename(folder)


def _read_meta(folder: Path) -> dict[str, Any] | None:
    """A checkpoint's `meta.json`; None if it is missing or damaged."""
    try:
        meta: dict[str, Any] = read_json(folder / META_NAME)
    except (OSError, CocomixError):
        return None
    return meta if is_sealed(meta, "fingerprint") else None


def _cause_of(error: OSError | CheckpointException) -> str:
    """The first reason in torch's report, which holds one per rank."""
    if isinstance(error, CheckpointException):
        failure = next((failure for failure, _ in error.failures.values()), None)
        return reason_of(failure) if isinstance(failure, Exception) else "unknown"
    return reason_of(error)
