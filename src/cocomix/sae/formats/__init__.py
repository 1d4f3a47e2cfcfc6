"""Files of dictionaries, each read by one small module into one form.

A reader is a function from a path to a `Dictionary`: configuration and tensors under the names of `SparseAutoencoder`. It
takes every tensor by name and shape and every setting by name and kind; what it does not know is refused, because a
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
from cocomix.sae.formats import (
    dictionary_learning,
    gemma_scope,
    gemma_scope_2,
    openai,
    own,
    saelens,
    sparsify,
)
from cocomix.sae.formats.files import Dictionary
from cocomix.sae.formats.folding import with_input_scale as with_input_scale
from cocomix.sae.formats.hub import local_path
from cocomix.sae.formats.recognition import recognise

FORMATS: dict[str, Callable[[Path], Dictionary]] = {
    "own": own.read,
    "openai": openai.read,
    "sparsify": sparsify.read,
    "saelens": saelens.read,
    "gemma_scope": gemma_scope.read,
    "gemma_scope_2": gemma_scope_2.read,
    "dictionary_learning": dictionary_learning.read,
}


def read(path: Path | str, format: str | None = None, *, allow_square: bool = False) -> Dictionary:
    """Configuration and tensors of a dictionary; see `SparseAutoencoder.from_pretrained`."""
    if format is not None and format not in FORMATS:
        raise CocomixError(f"{format!r} is no format of dictionaries; choose one of {', '.join(FORMATS)}")
    found = local_path(path)
    name = format or recognise(found)
    config, tensors = FORMATS[name](found)
    if name != "own" and config.hidden_size == config.num_latents and not allow_square:
        raise CocomixError(
            f"{found} has as many latents as inputs ({config.num_latents}), so that no shape tells its matrices from "
            "their transposes; if you know that they are as its format says, load it in Python with allow_square=True and "
            "save it again"
        )
    for tensor_name, tensor in tensors.items():
        if not bool(tensor.isfinite().all()):
            raise CocomixError(f"{found} has {tensor_name} with values that are not finite; the file is damaged")
    dtype = torch.float64 if any(tensor.dtype == torch.float64 for tensor in tensors.values()) else torch.float32
    return Dictionary(config, {name: tensor.to(dtype) for name, tensor in tensors.items()})


def write(folder: Path, format: str, config: SparseAutoencoderConfig, tensors: dict[str, Tensor]) -> None:
    """Write a dictionary; see `SparseAutoencoder.save_pretrained`."""
    writers = {"own": own.write, "saelens": saelens.write}
    if format not in writers:
        raise CocomixError(f"dictionaries are written as {' or '.join(writers)}, not as {format!r}")
    writers[format](folder, config, tensors)
