"""Paths on the command line, checked before the command's own libraries are imported, which takes seconds.

The command checks its inputs again, and every byte of them; here are the mistakes of a person who types.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from cocomix.base import artifacts
from cocomix.base.command import CommandConfig
from cocomix.base.errors import CocomixError
from cocomix.base.foreign import require_content
from cocomix.base.hub import local_model, may_be_on_hub, require_known_place
from cocomix.base.kinds import (
    CONCEPT_DATASET,
    DISTILLATION_TARGETS,
    SPARSE_AUTOENCODER,
    TOKEN_DATASET,
    named_inside,
)
from cocomix.modeling.families import num_blocks, require_layer
from cocomix.sae.find import agreed_layer, local_path, recognise
from cocomix.training.config import NOT_NEEDED, OPEN

#: What the folder of a field must hold, in every command.
_FOLDERS = {"data": TOKEN_DATASET, "labels": CONCEPT_DATASET, "targets": DISTILLATION_TARGETS}
_MODELS = ("model", "teacher", "pretrained")
_SAES = ("sae", "start_from_sae")
_TEXTS = ("text", "validation_text")


def check_paths(config: CommandConfig, writes: str) -> None:
    """Refuse the paths of a configuration that can't be what the command needs, and options that contradict their files.

    Args:
        config: the configuration of a command.
        writes: the kind of folder that the command makes in `output`; empty if it makes none.

    Raises:
        CocomixError: an input does not exist or is something else, or the output can't be made there.
    """
    _check_fields(config, is_planned=False)
    _check_layer(config)
    config.check_files()
    outputs: Sequence[Path | None] = getattr(config, "outputs", (getattr(config, "output", None),))
    for output in outputs:
        if writes and output is not None:
            artifacts.check_output(output, writes, None if getattr(config, "overwrite", False) else config.settings())


def _check_fields(config: Any, *, is_planned: bool) -> None:
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if dataclasses.is_dataclass(value):
            _check_fields(value, is_planned=is_planned or field.name == "run")
        elif isinstance(value, Path) and value not in (OPEN, NOT_NEEDED):
            _check_path(field.name, value, is_planned=is_planned)
        elif field.name in _TEXTS:
            for path in value or ():
                if not path.exists():
                    raise CocomixError(f"{field.name} names {path}, which does not exist")


def _check_layer(config: Any) -> None:
    """Refuse a layer that the teacher lacks, or that is another one than the autoencoder's."""
    teacher, sae, layer = (getattr(config, name, None) for name in ("teacher", "sae", "layer"))
    if teacher is None or layer is None:
        return
    count = num_blocks(local_model(teacher))
    for each in (layer,) if isinstance(layer, int) else layer:
        if count is not None:
            require_layer(each, count)
    if sae is not None and (sae / artifacts.SETTINGS_NAME).exists():
        agreed_layer(sae, artifacts.read_header(sae)["settings"]["layer"], layer, "--layer")


def _check_path(name: str, path: Path, *, is_planned: bool) -> None:
    """Check one path; a plan needs only the shape of a model from the Hub, and no distillation targets yet."""
    if name in _FOLDERS:
        if path.exists() or not (is_planned and name == "targets"):
            artifacts.read(path, _FOLDERS[name], files=())
    elif name in _MODELS:
        if is_planned and may_be_on_hub(str(path)):
            return
        require_known_place(name, path)
        folder = local_model(path)
        if folder.suffix != ".gguf" and not (folder / "config.json").exists():
            raise CocomixError(
                f"{path} has no config.json; expected a model folder or a GGUF file{named_inside(folder, 'config.json')}"
            )
        require_content(folder)
    elif name in _SAES and (path / artifacts.SETTINGS_NAME).exists():
        artifacts.read(path, SPARSE_AUTOENCODER, files=())
    elif name in _SAES:
        recognise(local_path(path))
