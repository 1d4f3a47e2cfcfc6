"""What readers stand on: files opened without running code, tensors and settings taken by name, everything else refused."""

from __future__ import annotations

import reprlib
import zipfile
from collections.abc import Collection, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple, NoReturn

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from cocomix.base.errors import CocomixError, reason_of
from cocomix.base.foreign import require_content, require_uncompiled
from cocomix.base.parsing import parse_json
from cocomix.sae.config import SparseAutoencoderConfig

#: What would be needed to read what is not read, by the value of the setting that says so.
NEEDED = {
    "gated": "a second path of the encoder that decides which latents are active",
    "GatedAutoEncoder": "a second path of the encoder that decides which latents are active",
    "transcoder": "the activations that it predicts, which are not those that it reads",
    "skip_transcoder": "the activations that it predicts, which are not those that it reads",
    "jumprelu_transcoder": "the activations that it predicts, which are not those that it reads",
    "in_and_out": "the activations that it predicts, which are not those that it reads",
    "hook_z": "the outputs of an attention's heads, which are no residual stream",
    "temporal": "the latents of earlier tokens",
    "matching_pursuit": "an encoder that chooses one latent after another",
}

_SHORT = reprlib.Repr()
_SHORT.maxstring = 60
#: How a message shows a value of a file, which can have any length and depth.
short = _SHORT.repr


class SaeWeights(NamedTuple):
    """A dictionary as every reader returns it."""

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
        require_uncompiled(entries, path)

    def __contains__(self, name: str) -> bool:
        return name in self._left

    def take(self, name: str, *shape: int) -> Tensor:
        """A tensor of this shape, half precision as float32."""
        tensor = self._tensor(name)
        actual = tuple(tensor.shape)
        if actual != shape:
            is_transposed = len(shape) == 2 and actual == shape[::-1]
            raise CocomixError(
                f"{self.path} has {name} of shape {list(actual)} where its other content asks for {list(shape)}"
                + ("; it looks transposed, and cocomix transposes no matrix on a guess" if is_transposed else "")
            )
        if not tensor.is_floating_point():
            raise CocomixError(f"{self.path} has {name} as {tensor.dtype}; cocomix reads floating-point weights only")
        del self._left[name]
        return tensor if tensor.dtype == torch.float64 else tensor.float()

    def take_weights(
        self, config: SparseAutoencoderConfig, names: str, *, skip: str = "skip_weight", ignored: str = ""
    ) -> SaeWeights:
        """All tensors that the configuration asks for; every other one is refused.

        Args:
            config: of the dictionary.
            names: of the encoder's matrix and bias and of the decoder's matrix and bias, separated by spaces; `.T` follows
                the name of a matrix that is stored as one column a latent, [D, C]. Last may follow that of the threshold.
            skip: name of the skip connection's matrix.
            ignored: names of tensors that do not change what the dictionary computes, such as statistics of its training.
        """
        C, D = config.num_latents, config.hidden_size
        shapes = {"encoder_weight": (C, D), "encoder_bias": (C,), "decoder_weight": (C, D), "decoder_bias": (D,)}
        taken = {}
        *weights, threshold = names.split() if len(names.split()) > 4 else (*names.split(), "threshold")
        for (parameter, shape), name in zip(shapes.items(), weights, strict=True):
            if name.endswith(".T"):
                taken[parameter] = self.take(name.removesuffix(".T"), *reversed(shape)).t()
            else:
                taken[parameter] = self.take(name, *shape)
        if config.activation in ("jumprelu", "batchtopk"):
            taken["threshold"] = self.take(threshold, *([C] if config.activation == "jumprelu" else []))
        if config.skip_connection:
            taken["skip_weight"] = self.take(skip, D, D)
        if unknown := sorted(self._left.keys() - {*ignored.split()}):
            raise CocomixError(
                f"{self.path} holds {', '.join(unknown)} beside what cocomix knows of its format; a dictionary read without "
                "it would compute something else"
            )
        return SaeWeights(config, taken)

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

    def _tensor(self, name: str) -> Tensor:
        if name not in self._left:
            left = ", ".join(sorted(self._left)[:8]) or "nothing else"
            raise CocomixError(f"{self.path} has no tensor {name}; beside the tensors already read it holds: {left}")
        tensor = self._left[name]
        if not isinstance(tensor, Tensor):
            raise CocomixError(f"{self.path} has {name} as {type(tensor).__name__}; expected a tensor")
        return tensor


class Settings:
    """Entries of a JSON object.

    Args:
        path: the file, for messages.
        entries: the object.
    """

    def __init__(self, path: Path, entries: Mapping[str, Any]) -> None:
        self.path, self.entries = path, dict(entries)

    @classmethod
    def read(cls, path: Path) -> Settings:
        if not path.is_file():
            raise CocomixError(f"{path.parent} has no {path.name}")
        entries = parse_json(path.read_bytes(), str(path))
        if not isinstance(entries, dict):
            raise CocomixError(f"{path} holds no JSON object")
        return cls(path, entries)

    def take(
        self,
        required: Mapping[str, type],
        optional: Mapping[str, Any],
        only: Mapping[str, Collection[Any]] = MappingProxyType({}),
        ignored: str = "",
    ) -> dict[str, Any]:
        """The entries of one format; every other one is refused.

        Args:
            required: names that must be there, and their types; whole numbers are floats too.
            optional: other names, and their values where the file has none or null; a type stands for None or a value of it.
            only: for some names the values that can be read.
            ignored: names that do not change what the dictionary computes, separated by spaces.
        """
        values: dict[str, Any] = {}
        for name, default in {**required, **optional}.items():
            kind = default if isinstance(default, type) else type(default)
            value = self.entries.get(name)
            if value is None:
                if name in required:
                    raise CocomixError(f"{self.path} has no setting {name}")
                value = None if isinstance(default, type) else default
            elif type(value) not in ((int, float) if kind is float else (kind,)):  # a bool is not taken for an int
                raise CocomixError(f"{self.path} has {name} = {short(value)}; expected {kind.__name__}")
            if name in only and value not in only[name]:
                self.refuse(name, value, f"cocomix reads {' or '.join(map(repr, only[name]))}")
            values[name] = value
        if unknown := sorted(self.entries.keys() - {*values, *ignored.split()}):
            raise CocomixError(
                f"{self.path} has settings that cocomix does not know ({', '.join(unknown)[:200]}); delete those from the "
                "file that do not change what the dictionary computes"
            )
        return values

    def refuse(self, name: str, value: Any, reason: str) -> NoReturn:
        """Refuse one entry by name."""
        if isinstance(value, str) and value in NEEDED:
            reason = f"it needs {NEEDED[value]}"
        raise CocomixError(f"{self.path} has {name} = {short(value)}, which cannot be read: {reason}")


def read_safetensors(path: Path) -> Tensors:
    _require(path)
    try:
        return Tensors(path, load_file(path))
    except (SafetensorError, OSError) as error:
        raise CocomixError(f"{path} is damaged or not a safetensors file: {reason_of(error)}") from error


def read_npz(path: Path) -> Tensors:
    _require(path)
    try:
        with np.load(path, allow_pickle=False) as arrays:
            return Tensors(path, {name: torch.from_numpy(arrays[name]) for name in arrays.files})
    except Exception as error:  # what a damaged archive raises depends on the byte
        raise CocomixError(f"{path} is damaged or not a file of plain arrays: {reason_of(error)}") from error


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
        raise CocomixError(f"{path} is not a file; see docs/dictionaries.md for the files of each format")
    require_content(path)
