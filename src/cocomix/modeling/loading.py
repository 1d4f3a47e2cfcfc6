"""Loading any causal LM, with one sentence where it can't be."""

from __future__ import annotations

from pathlib import Path
from typing import cast

import torch
from transformers import AutoModelForCausalLM, PreTrainedModel

from cocomix.base.errors import CocomixError
from cocomix.modeling.model import check_loading_report


def load_causal_lm(path: Path | str) -> PreTrainedModel:
    """A causal LM in evaluation mode, from a folder (a training run, `save_pretrained`) or a Hub name.

    Raises:
        CocomixError: nothing loadable is there, or its weights do not fit its configuration.
    """
    if isinstance(path, Path) and not (path / "config.json").exists():
        raise CocomixError(f"{path} has no config.json; expected a model folder")
    try:
        # Attribution and evaluation compute in float32, whatever the file holds.
        model, report = AutoModelForCausalLM.from_pretrained(
            path, dtype=torch.float32, use_safetensors=True, output_loading_info=True
        )
    except CocomixError:
        raise
    except Exception as error:  # the libraries below raise a dozen kinds of their own for a damaged file
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise CocomixError(f"no causal language model could be loaded from {path}: {reason}") from error
    check_loading_report(report, str(path))
    return cast(PreTrainedModel, model.eval())
