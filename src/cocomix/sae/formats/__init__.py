"""Files of dictionaries, each format read by one small function into one form.

A reader is a function from a path to `SaeWeights`: configuration and tensors under the names of `SparseAutoencoder`. It
takes every tensor by name and shape and every setting by name and kind. It refuses what it does not know, because a
dictionary that loads but computes something else is worse than one that does not load. Nothing is ever transposed because
its shape fits better, and no file can run code.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from cocomix.base.errors import CocomixError
from cocomix.sae.config import ACTIVATIONS, INPUT_NORMALIZATIONS, SparseAutoencoderConfig
from cocomix.sae.formats import readers, saelens
from cocomix.sae.formats.files import SaeWeights
from cocomix.sae.formats.find import local_path, recognise
from cocomix.sae.formats.saelens import with_input_scale as with_input_scale


@dataclass(frozen=True)
class Format:
    """A reader, and what docs/dictionaries.md says of it: the rows of its table come from here."""

    read: Callable[[Path], SaeWeights]
    kinds: str
    """Which of its dictionaries are read."""
    subtracted: str
    """From the input, before encoding."""
    normalization: str
    """Of the input."""
    latents: str
    """Which are active."""
    file: str = ""
    """A single file, where it need not be a folder of `find.FILES`."""


def _names(names: Iterable[str]) -> str:
    return ", ".join(f"`{name}`" for name in names)


FORMATS: dict[str, Format] = {
    "own": Format(
        readers.read_own,
        "all that its settings say",
        "`decoder_bias`, if `subtract_decoder_bias`",
        _names(INPUT_NORMALIZATIONS),
        _names(ACTIVATIONS),
    ),
    "openai": Format(
        readers.read_openai,
        "TopK (v5) and the older ReLU files",
        "`pre_bias`",
        "TopK: x = (h − mean) / (std + 1e-5), undone by · std + mean; ReLU: none",
        "k largest, after a ReLU; or all above zero",
        "one `.pt` with `pre_bias`",
    ),
    "sparsify": Format(
        readers.read_sparsify,
        "TopK, signed TopK, groupmax; skip connections and transcoders",
        "`b_dec`, unless a transcoder",
        "none",
        "k largest, or the largest of each of k groups, after a ReLU; signed: the k largest in size, with their signs",
    ),
    "saelens": Format(
        saelens.read,
        f"versions 6 and 5, and checkpoints of a training: {_names(saelens.ARCHITECTURES)}",
        "`b_dec`, if `apply_b_dec_to_input`",
        _names(saelens.NORMALIZATIONS),
        "by architecture; the BatchTopK ones all above their threshold; `abstopk`: the k largest in size, with their signs",
    ),
    "gemma_scope": Format(
        readers.read_gemma_scope,
        "all",
        "nothing",
        "none",
        "above a threshold each",
        "`params.npz`, a folder's or alone",
    ),
    "gemma_scope_2": Format(readers.read_gemma_scope_2, "autoencoders", "nothing", "none", "above a threshold each"),
    "dictionary_learning": Format(
        readers.read_dictionary_learning,
        _names(readers.DICTIONARY_LEARNING),
        "`b_dec`",
        "none",
        "k largest, after a ReLU; the BatchTopK ones all above their threshold",
    ),
    "qwen_scope": Format(
        readers.read_qwen_scope,
        "all",
        "nothing",
        "none",
        "k largest, after a ReLU; k is the end of the repository's name (`L0_50`)",
        "one `layer….sae.pt` with `W_enc`",
    ),
}
_WRITERS = {"own": readers.write_own, "saelens": saelens.write}


def read(path: Path | str, format: str | None = None, *, allow_square: bool = False) -> SaeWeights:
    """Configuration and tensors of a dictionary; see `SparseAutoencoder.from_pretrained`."""
    if format is not None and format not in FORMATS:
        raise CocomixError(f"{format!r} is no format of dictionaries; choose one of {', '.join(FORMATS)}")
    local = local_path(path)
    name = format or recognise(local)
    try:
        config, tensors = FORMATS[name].read(local)
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
