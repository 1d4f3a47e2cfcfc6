"""What transformers needs to know of a CoCoMix model: configuration class, initial weights, loading."""

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
    """A model of the family `cocomix`, whatever stands on top of it."""

    config_class = CoCoMixConfig
    base_model_prefix = "backbone"
    supports_gradient_checkpointing = True
    #: The loss is a mean over the batch; `transformers.Trainer` divides by its accumulation steps.
    accepts_loss_kwargs = False
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_flex_attn = True
    _supports_attention_backend = True

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        # The backbone initialises itself, from the same generator state whatever the mixer.
        if isinstance(module, Mixer) and not any(
            getattr(parameter, "_is_hf_initialized", False) for parameter in module.parameters()
        ):
            module.reset_parameters(self.config.initializer_range)

    @classmethod
    def from_pretrained(cls, *arguments: Any, output_loading_info: bool = False, **options: Any) -> Any:
        """Load a saved model; see `PreTrainedModel.from_pretrained`.

        Raises:
            CocomixError: no CoCoMix model can be read there, or tensors are missing, left over or of another shape (unless
                `ignore_mismatched_sizes`).
        """
        source = str(arguments[0] if arguments else options.get("pretrained_model_name_or_path", "the checkpoint"))
        # Weights are never unpickled, and a model with random weights in it never comes back silently.
        if not options.setdefault("use_safetensors", True):
            raise CocomixError("use_safetensors is off, but cocomix reads safetensors only")
        other_shapes_too = options.pop("ignore_mismatched_sizes", False)
        if (Path(source) / CONFIG_NAME).is_file():
            found = read_json(Path(source) / CONFIG_NAME).get("model_type")
            if found != CoCoMixConfig.model_type:
                raise CocomixError(
                    f"{source} holds a model of the family {found!r}; from_backbone makes a CoCoMix model of it"
                )
        try:
            model, report = super().from_pretrained(
                *arguments, output_loading_info=True, ignore_mismatched_sizes=True, **options
            )
        except CocomixError:
            raise
        except Exception as error:  # the libraries below raise a dozen kinds of their own for a damaged file
            raise CocomixError(f"no CoCoMix model could be loaded from {source}: {reason_of(error)}") from error
        allowed = {"mismatched_keys": ()} if other_shapes_too else {}
        check_loading_report(report | allowed, source)
        return (model, report) if output_loading_info else model


def check_loading_report(report: Mapping[str, Any], source: str) -> None:
    """Refuse a checkpoint that does not fit its configuration: the model would hold random weights, or lack some."""
    for problem in ("missing_keys", "unexpected_keys", "mismatched_keys"):
        if report[problem]:
            names = ", ".join(sorted(key if isinstance(key, str) else key[0] for key in report[problem])[:3])
            raise CocomixError(
                f"the weights in {source} do not fit its config.json ({problem.replace('_', ' ')}: {names})"
            )
