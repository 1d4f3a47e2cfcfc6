"""Cocomix's own folders: `sae.json` with the format's version and every setting, `sae.safetensors` with every tensor."""

from __future__ import annotations

from dataclasses import asdict, fields
from pathlib import Path

from safetensors.torch import save_file
from torch import Tensor

from cocomix.base.artifacts import write_json
from cocomix.base.errors import CocomixError
from cocomix.sae.config import SparseAutoencoderConfig
from cocomix.sae.formats.files import Dictionary, Settings, read_safetensors

FORMAT_VERSION = 2
CONFIG_NAME = "sae.json"
WEIGHTS_NAME = "sae.safetensors"


def read(folder: Path) -> Dictionary:
    settings = Settings.read(folder / CONFIG_NAME)
    version = settings.take_optional("format_version", int)
    if version != FORMAT_VERSION:
        raise CocomixError(
            f"{settings.path} has format version {version}; this cocomix reads {FORMAT_VERSION}; make the dictionary again"
        )
    num_active = settings.take_optional("num_active_latents", int)
    kinds = {"hidden_size": int, "num_latents": int, "normalize_input": str, "activation": str}
    rest = {
        field.name: settings.take(field.name, kinds.get(field.name, bool))
        for field in fields(SparseAutoencoderConfig)
        if field.name != "num_active_latents"
    }
    settings.refuse_rest()
    config = SparseAutoencoderConfig(num_active_latents=num_active, **rest)  # type: ignore[arg-type]
    tensors = read_safetensors(folder / WEIGHTS_NAME)
    found = {name: tensors.take(name, *shape) for name, shape in _shapes(config).items()}
    tensors.refuse_rest()
    return Dictionary(config, found)


def write(folder: Path, config: SparseAutoencoderConfig, tensors: dict[str, Tensor]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    save_file(tensors, folder / WEIGHTS_NAME)
    write_json(folder / CONFIG_NAME, {"format_version": FORMAT_VERSION, **asdict(config)})


def _shapes(config: SparseAutoencoderConfig) -> dict[str, tuple[int, ...]]:
    C, D = config.num_latents, config.hidden_size
    shapes: dict[str, tuple[int, ...]] = {
        "encoder_weight": (C, D),
        "encoder_bias": (C,),
        "decoder_weight": (C, D),
        "decoder_bias": (D,),
    }
    if config.activation in ("jumprelu", "batchtopk"):
        shapes["threshold"] = (C,) if config.activation == "jumprelu" else ()
    if config.skip_connection:
        shapes["skip_weight"] = (D, D)
    return shapes
