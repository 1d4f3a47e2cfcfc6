"""What transformers needs to know about a CoCoMix model: configuration class, initial weights, loading."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import HfApi
from torch import nn
from transformers import PreTrainedModel
from transformers.utils import CONFIG_NAME

from cocomix.base.artifacts import CARD_NAME, CONCEPT_METADATA_NAMES, read_json
from cocomix.base.errors import CocomixError
from cocomix.base.foreign import require_uncompiled
from cocomix.base.hub import download
from cocomix.base.remote_code import loading_reason
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
        given = arguments[0] if arguments else options.get("pretrained_model_name_or_path")
        source = str(given or "the checkpoint")
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
            raise CocomixError(
                f"no CoCoMix model could be loaded from {source}: {loading_reason(error, source)}"
            ) from error
        if given and not Path(given).is_dir():  # a Hub name: fetch what stands beside the weights, and note where
            names = ("cache_dir", "local_files_only", "revision", "token")
            where = {name: options[name] for name in names if name in options}
            beside = (CONFIG_NAME, *CONCEPT_METADATA_NAMES, CARD_NAME)
            model.config.name_or_path = download(source, source, beside, **where)
        allowed = {"mismatched_keys": ()} if other_shapes_too else {}
        check_loading_report(report | allowed, source)
        return (model, report) if output_loading_info else model

    def push_to_hub(self, repo_id: str, **options: Any) -> Any:
        """Upload the model and what is kept beside it; see `PreTrainedModel.push_to_hub`.

        A repository without a card gets the run's. `transformers` would give it an empty form.
        """
        card = Path(self.config.name_or_path) / CARD_NAME
        if self.config.name_or_path and card.is_file() and not options.get("create_pr"):
            hub = HfApi(token=options.get("token"))
            repository = hub.create_repo(repo_id, private=options.get("private"), exist_ok=True).repo_id
            if not hub.file_exists(repository, CARD_NAME):
                hub.upload_file(path_or_fileobj=card, path_in_repo=CARD_NAME, repo_id=repository)
        return super().push_to_hub(repo_id, **options)


def check_loading_report(report: Mapping[str, Any], source: str) -> None:
    """Refuse weights that do not fit their configuration: some parameters would be random, or some weights lost."""
    require_uncompiled(report["unexpected_keys"], source)
    for problem in ("missing_keys", "unexpected_keys", "mismatched_keys"):
        if report[problem]:
            names = ", ".join(sorted(key if isinstance(key, str) else key[0] for key in report[problem])[:3])
            raise CocomixError(
                f"the weights in {source} don't fit its config.json ({problem.replace('_', ' ')}: {names})"
            )
