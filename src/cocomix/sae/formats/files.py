"""What every reader stands on: files opened without running code, tensors and settings taken one by one."""

from __future__ import annotations

import json
import zipfile
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any, NamedTuple, NoReturn, TypeVar

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from cocomix.base.errors import CocomixError
from cocomix.sae.config import SparseAutoencoderConfig

T = TypeVar("T", bool, int, float, str)


class Dictionary(NamedTuple):
    """What a reader returns."""

    config: SparseAutoencoderConfig
    tensors: dict[str, Tensor]
    """Under the names of `SparseAutoencoder`'s parameters and buffers; matrices are one row a latent, [C, D]."""


class Tensors:
    """Tensors of a file, taken by name and shape; what is left over is refused.

    Args:
        path: the file, for messages.
        entries: tensors by name; a pickled file may hold plain values too.
    """

    def __init__(self, path: Path, entries: Mapping[str, Any]) -> None:
        self.path = path
        self._left = dict(entries)

    def __contains__(self, name: str) -> bool:
        return name in self._left

    def take(self, name: str, *shape: int) -> Tensor:
        """A tensor of this shape, half precision as float32."""
        tensor = self._tensor(name)
        found = tuple(tensor.shape)
        if found != shape:
            advice = (
                "; it looks transposed, and cocomix turns no matrix on a guess"
                if len(shape) == 2 and found == shape[::-1]
                else ""
            )
            raise CocomixError(
                f"{self.path} has {name} of shape {list(found)} where its other content asks for {list(shape)}{advice}"
            )
        if not tensor.is_floating_point():
            raise CocomixError(f"{self.path} has {name} as {tensor.dtype}; cocomix reads floating-point weights only")
        del self._left[name]
        return tensor if tensor.dtype == torch.float64 else tensor.float()

    def take_value(self, name: str, default: Any) -> Any:
        """A plain value of a pickled file, or a tensor of one number as that number."""
        value = self._left.pop(name, default)
        if isinstance(value, Tensor):
            if value.numel() != 1:
                raise CocomixError(f"{self.path} has {name} of shape {list(value.shape)}; expected one number")
            return value.item()
        return value

    def length(self, name: str) -> int:
        """Length of a vector: the size that the matrices are checked against."""
        tensor = self._tensor(name)
        if tensor.ndim != 1:
            raise CocomixError(f"{self.path} has {name} of shape {list(tensor.shape)}; expected a vector")
        return len(tensor)

    def ignore(self, *names: str) -> None:
        """Leave out tensors that are known not to matter, such as statistics of the training."""
        for name in names:
            self._left.pop(name, None)

    def refuse_rest(self) -> None:
        if self._left:
            raise CocomixError(
                f"{self.path} holds {', '.join(sorted(self._left))} beside what cocomix knows of its format; a dictionary "
                "read without it would compute something else"
            )

    def _tensor(self, name: str) -> Tensor:
        if name not in self._left:
            left = ", ".join(sorted(self._left)[:8]) or "nothing else"
            raise CocomixError(f"{self.path} has no tensor {name}; what it holds beside what was read is: {left}")
        tensor = self._left[name]
        if not isinstance(tensor, Tensor):
            raise CocomixError(f"{self.path} has {name} as {type(tensor).__name__}; expected a tensor")
        return tensor


class Settings:
    """Entries of a JSON object, taken by name and kind; what is left over is refused.

    Args:
        path: the file, for messages.
        entries: the object.
    """

    def __init__(self, path: Path, entries: Mapping[str, Any]) -> None:
        self.path = path
        self._left = dict(entries)

    @classmethod
    def read(cls, path: Path) -> Settings:
        if not path.is_file():
            raise CocomixError(f"{path.parent} has no {path.name}")
        try:
            entries = json.loads(path.read_text(encoding="utf-8"))
        except ValueError as error:  # not JSON, or not UTF-8
            raise CocomixError(f"{path} is damaged: {error}") from error
        if not isinstance(entries, dict):
            raise CocomixError(f"{path} holds no JSON object")
        return cls(path, entries)

    def take(self, name: str, kind: type[T], default: T | None = None) -> T:
        """The entry, or the default where there is none or it is null."""
        value = self.take_optional(name, kind)
        if value is None:
            value = default
        if value is None:
            raise CocomixError(f"{self.path} has no setting {name}")
        return value

    def take_optional(self, name: str, kind: type[T]) -> T | None:
        """The entry; None where there is none or it is null."""
        value = self._left.pop(name, None)
        if kind is float and type(value) is int:
            value = float(value)
        if value is not None and type(value) is not kind:  # a bool is no int here
            raise CocomixError(f"{self.path} has {name} = {value!r}; expected {kind.__name__}")
        return value

    def take_object(self, name: str) -> dict[str, Any] | None:
        """An entry that is an object itself; None where there is none or it is null."""
        value = self._left.pop(name, None)
        if value is not None and type(value) is not dict:
            raise CocomixError(f"{self.path} has {name} = {value!r}; expected an object")
        return value

    def take_all(self) -> dict[str, Any]:
        """Whatever is left."""
        left, self._left = self._left, {}
        return left

    def refuse(self, name: str, value: Any, reason: str) -> NoReturn:
        """Refuse one entry by name."""
        raise CocomixError(f"{self.path} has {name} = {value!r}, which cocomix can't read: {reason}")

    def ignore(self, names: Collection[str]) -> None:
        """Leave out entries that are known not to change what the dictionary computes."""
        for name in names:
            self._left.pop(name, None)

    def refuse_rest(self) -> None:
        if self._left:
            raise CocomixError(
                f"{self.path} has settings that cocomix does not know ({', '.join(sorted(self._left))}); delete those from "
                "the file that do not change what the dictionary computes"
            )


def read_safetensors(path: Path) -> Tensors:
    _require(path)
    try:
        return Tensors(path, load_file(path))
    except (SafetensorError, OSError) as error:
        raise CocomixError(f"{path} is damaged or no safetensors file: {error}") from error


def read_npz(path: Path) -> Tensors:
    _require(path)
    try:
        with np.load(path, allow_pickle=False) as arrays:
            return Tensors(path, {name: torch.from_numpy(arrays[name]) for name in arrays.files})
    except (ValueError, OSError, EOFError, TypeError, AttributeError, zipfile.BadZipFile) as error:
        raise CocomixError(f"{path} is damaged or no file of plain arrays: {error}") from error


def read_pickle(path: Path) -> Tensors:
    """A file of `torch.save`, opened so that nothing but tensors and plain values can come out of it."""
    _require(path)
    try:
        entries = torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except Exception as error:  # a damaged pickle can raise anything, and torch's own advice is to trust it
        raise CocomixError(
            f"{path} is damaged, or holds more than tensors and plain values, which could run code; cocomix opens neither"
        ) from error
    if not isinstance(entries, dict) or not all(isinstance(name, str) for name in entries):
        raise CocomixError(f"{path} holds no named tensors; expected what torch.save writes of a state_dict")
    return Tensors(path, entries)


def _require(path: Path) -> None:
    if not path.is_file():
        raise CocomixError(f"{path} is no file; see docs/dictionaries.md for the files of each format")
