"""Files of dictionaries, each format read by one small function into one form.

A reader is a function from a path to `SaeWeights`: configuration and tensors under the names of `SparseAutoencoder`. It
takes every tensor by name and shape and every setting by name and kind. It refuses what it does not know, because a
dictionary that loads but computes something else is worse than one that does not load. Nothing is ever transposed because
its shape fits better, and no file can run code.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from cocomix.base.errors import CocomixError
from cocomix.sae.config import SparseAutoencoderConfig
from cocomix.sae.find import local_path, recognise
from cocomix.sae.formats import readers, saelens
from cocomix.sae.formats.files import SaeWeights
from cocomix.sae.formats.saelens import with_input_scale as with_input_scale

FORMATS: dict[str, Callable[[Path], SaeWeights]] = {
    "own": readers.read_own,
    "openai": readers.read_openai,
    "sparsify": readers.read_sparsify,
    "saelens": saelens.read,
    "gemma_scope": readers.read_gemma_scope,
    "gemma_scope_2": readers.read_gemma_scope_2,
    "dictionary_learning": readers.read_dictionary_learning,
    "qwen_scope": readers.read_qwen_scope,
}
_WRITERS = {"own": readers.write_own, "saelens": saelens.write}


def read(path: Path | str, format: str | None = None, *, allow_square: bool = False) -> SaeWeights:
    """Configuration and tensors of a dictionary; see `SparseAutoencoder.from_pretrained`."""
    if format is not None and format not in FORMATS:
        raise CocomixError(f"{format!r} is no format of dictionaries; choose one of {', '.join(FORMATS)}")
    local = local_path(path)
    name = format or recognise(local)
    try:
        config, tensors = FORMATS[name](local)
    except CocomixError as error:
        raise error if str(local) in str(error) else CocomixError(f"{local}: {error}") from None
    if name != "own" and config.hidden_size == config.num_latents and not allow_square:
        raise CocomixError(
            f"{local} has as many latents as inputs ({config.num_latents}), so that no shape tells its matrices from "
            "their transposes; if you know that they are as its format says, load it in Python with allow_square=True and "
            "save it again"
        )
    for tensor_name, tensor in tensors.items():
        if not bool(tensor.isfinite().all()):
            raise CocomixError(f"{local} has {tensor_name} with values that are not finite; the file is damaged")
    dtype = torch.float64 if tensors["encoder_weight"].dtype == torch.float64 else torch.float32
    return SaeWeights(config, {name: tensor.to(dtype) for name, tensor in tensors.items()})


def write(folder: Path, format: str, config: SparseAutoencoderConfig, tensors: dict[str, Tensor]) -> None:
    """Write a dictionary; see `SparseAutoencoder.save_pretrained`."""
    if format not in _WRITERS:
        raise CocomixError(f"dictionaries are written as {' or '.join(_WRITERS)}, not as {format!r}")
    _WRITERS[format](folder, config, tensors)
