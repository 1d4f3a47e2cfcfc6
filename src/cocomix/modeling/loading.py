"""Loading any causal LM, with one sentence where it can't be."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path
from typing import Any, cast

import torch
from transformers import AutoModelForCausalLM, PreTrainedModel

import cocomix.modeling.model  # noqa: F401 (registers CoCoMix with the Auto classes)
from cocomix.base.errors import CocomixError, reason_of
from cocomix.base.hub import download
from cocomix.modeling.pretrained import check_loading_report

MODEL_FILES = ("*.json", "*.safetensors", "*.model", "*.txt")
_HUB_NAME = re.compile(r"[\w.-]+(/[\w.-]+)?")


def may_be_on_hub(name: str) -> bool:
    """Whether a name has the form of a repository's, `organisation/name` or `name`."""
    return _HUB_NAME.fullmatch(name) is not None


def local_model(path: Path) -> Path:
    """The path itself where something is there; else the folder of what was downloaded from the Hub under that name.

    Raises:
        CocomixError: it is neither.
    """
    if path.exists() or not may_be_on_hub(str(path)):
        return path
    return download(str(path), str(path), MODEL_FILES)


def load_causal_lm(path: Path | str) -> PreTrainedModel:
    """A causal LM in evaluation mode, in float32.

    Args:
        path: a folder (a training run, or what `save_pretrained` wrote), a GGUF file, or a Hub name.

    Raises:
        CocomixError: nothing loadable is there, or its weights do not fit its configuration.
    """
    folder = Path(path)
    options: dict[str, Any] = {"use_safetensors": True}
    if folder.suffix == ".gguf":
        if not folder.is_file():
            raise CocomixError(f"{path} is not a file")
        if importlib.util.find_spec("gguf") is None:
            raise CocomixError(f"{path} needs the package gguf; install it with `pip install 'cocomix[gguf]'`")
        path, options = folder.parent, {"gguf_file": folder.name}
    elif isinstance(path, Path) and not (folder / "config.json").exists():
        raise CocomixError(f"{path} has no config.json; expected a model folder")
    try:
        # Attribution and evaluation compute in float32, whatever the file holds.
        model, report = AutoModelForCausalLM.from_pretrained(
            path, dtype=torch.float32, output_loading_info=True, ignore_mismatched_sizes=True, **options
        )
    except CocomixError:
        raise
    except Exception as error:  # the libraries below raise a dozen kinds of their own for a damaged file
        raise CocomixError(f"no causal language model could be loaded from {folder}: {reason_of(error)}") from error
    check_loading_report(report, str(folder))
    return cast(PreTrainedModel, model.eval())
