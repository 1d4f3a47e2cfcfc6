"""Loading of causal LMs from folders, GGUF files and the Hub."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any, cast

import torch
from transformers import AutoModelForCausalLM, PreTrainedModel

import cocomix.modeling.model  # noqa: F401 (registers CoCoMix with the Auto classes)
from cocomix.base.errors import CocomixError, reason_of
from cocomix.modeling.pretrained import check_loading_report


def load_causal_lm(path: Path | str) -> PreTrainedModel:
    """A causal LM in evaluation mode, in float32.

    Args:
        path: a folder (a training run, or one written by `save_pretrained`), a GGUF file, or a Hub name.

    Raises:
        CocomixError: the model can't be loaded, or its weights don't fit its configuration.
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
        # Attribution and evaluation compute in float32, even if the weights are stored in another dtype.
        model, report = AutoModelForCausalLM.from_pretrained(
            path, dtype=torch.float32, output_loading_info=True, ignore_mismatched_sizes=True, **options
        )
    except CocomixError:
        raise
    except Exception as error:  # the libraries raise a dozen types of their own for damaged files
        raise CocomixError(f"no causal language model could be loaded from {folder}: {reason_of(error)}") from error
    check_loading_report(report, str(folder))
    return cast(PreTrainedModel, model.eval())
