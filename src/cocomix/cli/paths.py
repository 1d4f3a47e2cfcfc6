"""Paths on the command line, checked before the command's own libraries are imported, which takes seconds.

The command checks its inputs again, and every byte of them; here are the mistakes of a person who types.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

from cocomix.base import artifacts
from cocomix.base.errors import CocomixError
from cocomix.base.hub import HUB_PLACE, local_model, may_be_on_hub, require_known_place
from cocomix.base.kinds import CONCEPT_DATASET, TOKEN_DATASET
from cocomix.training.config import NOT_NEEDED, StudentConfig, TrainConfig

#: What the folder of a field must hold, in every command.
_FOLDERS = {"data": TOKEN_DATASET, "labels": CONCEPT_DATASET}
_MODELS = ("model", "teacher", "pretrained")
_TEXTS = ("text", "validation_text")


def check_paths(config: Any, writes: str, *, downloads: bool = True) -> None:
    """Refuse the paths of a configuration that can't be what the command needs.

    Args:
        config: the configuration of a command.
        writes: the kind of folder that the command makes in `output`; empty if it makes none.
        downloads: whether a model that is named as on the Hub is downloaded; a plan needs its shape alone.

    Raises:
        CocomixError: an input does not exist or is something else, or the output can't be made there.
    """
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if isinstance(value, TrainConfig):  # of a plan
            check_paths(value, "", downloads=False)
        elif isinstance(value, StudentConfig):
            check_paths(value, "", downloads=downloads)
        elif isinstance(value, Path):
            _check_path(field.name, value, downloads=downloads)
        elif field.name == "tokenizer" and value is not None:
            require_known_place("tokenizer", value)
        elif field.name in _TEXTS:
            for path in value or ():
                if not path.exists():
                    raise CocomixError(f"{path} does not exist")
    if writes and config.output is not None:
        for output in getattr(config, "outputs", (config.output,)):
            artifacts.check_output(output, writes)


def _check_path(name: str, path: Path, *, downloads: bool) -> None:
    if path == NOT_NEEDED:
        return
    if name in _FOLDERS:
        artifacts.read(path, _FOLDERS[name], files=())
    elif name in _MODELS:
        if may_be_on_hub(str(path)) and not downloads:
            return
        require_known_place(name, path)
        folder = local_model(path)
        if folder.is_dir() and not (folder / "config.json").exists():
            raise CocomixError(f"{path} has no config.json; expected a model folder")
    elif name in ("sae", "start_from_sae") and not path.exists() and HUB_PLACE.fullmatch(str(path)) is None:
        raise CocomixError(f"{path} does not exist, and is no name on the Hugging Face Hub (organisation/repository)")
    elif name == "task_data" and not path.is_dir():
        raise CocomixError(f"{path} is not a folder; --task-data takes the one with the benchmarks' files")
