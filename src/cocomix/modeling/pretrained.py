"""What transformers needs to know about a CoCoMix model: configuration class, initial weights, loading."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel
from transformers.utils import CONFIG_NAME

from cocomix.base.artifacts import read_json
from cocomix.base.errors import CocomixError, reason_of
from cocomix.mixers.base import Mixer
from cocomix.modeling.configuration import CoCoMixConfig


class CoCoMixPreTrainedModel(PreTrainedModel):
    """Base class for models of the family `cocomix`."""

    config_class = CoCoMixConfig
    base_model_prefix = "backbone"
    supports_gradient_checkpointing = True
    #: The loss is a mean over the batch, so `transformers.Trainer` must divide it by its accumulation steps.
    accepts_loss_kwargs = False
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_flex_attn = True
    _supports_attention_backend = True

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        # The backbone initialises itself, from the same generator state for every mixer.
        if isinstance(module, Mixer) and not any(
            getattr(parameter, "_is_hf_initialized", False) for parameter in module.parameters()
        ):
            module.reset_parameters(self.config.initializer_range)

    @classmethod
    def from_pretrained(cls, *arguments: Any, output_loading_info: bool = False, **options: Any) -> Any:
        """Load a saved model; see `PreTrainedModel.from_pretrained`.

        Raises:
            CocomixError: no CoCoMix model can be loaded, or tensors are missing, unexpected or of another shape (unless
                `ignore_mismatched_sizes`).
        """
        source = str(arguments[0] if arguments else options.get("pretrained_model_name_or_path", "the checkpoint"))
        # Weights are never unpickled, and a model that holds random weights is never returned silently.
        if not options.setdefault("use_safetensors", True):
            raise CocomixError("use_safetensors is off, but cocomix reads safetensors only")
        other_shapes_too = options.pop("ignore_mismatched_sizes", False)
        if (Path(source) / CONFIG_NAME).is_file():
            family = read_json(Path(source) / CONFIG_NAME).get("model_type")
            if family != CoCoMixConfig.model_type:
                raise CocomixError(
                    f"{source} holds a model of the family {family!r}; from_backbone makes a CoCoMix model from it"
                )
        try:
            model, report = super().from_pretrained(
                *arguments, output_loading_info=True, ignore_mismatched_sizes=True, **options
            )
        except CocomixError:
            raise
        except Exception as error:  # the libraries raise a dozen types of their own for damaged files
            raise CocomixError(f"no CoCoMix model could be loaded from {source}: {reason_of(error)}") from error
        allowed = {"mismatched_keys": ()} if other_shapes_too else {}
        check_loading_report(report | allowed, source)
        return (model, report) if output_loading_info else model


def check_loading_report(report: Mapping[str, Any], source: str) -> None:
    """Refuse weights that do not fit their configuration: some parameters would be random, or some weights lost."""
    for problem in ("missing_keys", "unexpected_keys", "mismatched_keys"):
        if report[problem]:
            names = ", ".join(sorted(key if isinstance(key, str) else key[0] for key in report[problem])[:3])
            raise CocomixError(
                f"the weights in {source} don't fit its config.json ({problem.replace('_', ' ')}: {names})"
            )
