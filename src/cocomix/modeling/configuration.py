"""Configuration of a CoCoMix model: the backbone's configuration and the mixer's settings."""

from __future__ import annotations

import dataclasses
import importlib
import math
import os
import shutil
from pathlib import Path
from typing import Any, ClassVar

from transformers import CONFIG_MAPPING, AutoConfig, PreTrainedConfig

from cocomix.base.artifacts import CARD_NAME, CONCEPT_METADATA_NAMES, atomic
from cocomix.base.errors import CocomixError
from cocomix.base.progress import say
from cocomix.mixers.config import MIXERS, MixerConfig, mixer_config

#: Format of `config.json`. Format 1 is that of version 0.1, which stored the block before which the mixer is inserted, and
#: scaled concept vectors back by std + 1e-5.
FORMAT_VERSION = 2
#: Approximations of version 0.1 that gained nothing.
_REFUSED = ("concept_window", "concept_groups")

#: Settings of transformers that do not describe the backbone.
_TRANSFORMERS_SETTINGS = frozenset(
    {
        "architectures",
        "attn_implementation",
        "bos_token_id",
        "chunk_size_feed_forward",
        "dtype",
        "eos_token_id",
        "gradient_checkpointing",
        "id2label",
        "is_encoder_decoder",
        "label2id",
        "model_type",
        "name_or_path",
        "num_labels",
        "output_attentions",
        "output_hidden_states",
        "pad_token_id",
        "problem_type",
        "return_dict",
        "tie_word_embeddings",
        "torch_dtype",
        "transformers_version",
        "use_cache",
    }
)


class CoCoMixConfig(PreTrainedConfig):
    """Settings of a `CoCoMixForCausalLM`, checked when built.

    The mixer's own settings (`mixing`, `layer`, `num_concepts` and so on, see `mixers/config.py`) are given and stored flat,
    and read as `config.mixer.NAME` or, shorter, as `config.NAME`.

    Args:
        backbone_config: configuration of the decoder, or its dictionary including `model_type`.
        mixer: `concept` (predict, compress and mix concepts), `pause` (one learned vector in place of every concept
            vector), `none` (the plain backbone) or another registered name; or the mixer's settings as one object.
        concept_loss_weight: lambda, weight of the concept loss in `loss`.
        initializer_range: standard deviation of the mixer's initial weights.
        format_version: format that the settings are in.
        settings: settings of the mixer, and of any `transformers` configuration. `insert_layer`, the block *before* which
            the mixer is inserted, is accepted for `layer` + 1.

    Raises:
        CocomixError: a name is unknown or a number is out of range.
    """

    model_type = "cocomix"
    #: Outputs that `transformers.Trainer` leaves out of its predictions.
    keys_to_ignore_at_inference: ClassVar[list[str]] = [
        "past_key_values",
        "lm_loss",
        "concept_loss",
        "lm_loss_sum",
        "lm_count",
        "concept_loss_sum",
        "concept_count",
        "concept_indices",
        "concept_values",
        "hidden_states",
    ]
    sub_configs: ClassVar[dict[str, Any]] = {"backbone_config": AutoConfig}

    mixer: MixerConfig

    def __init__(
        self,
        backbone_config: PreTrainedConfig | dict[str, Any] | None = None,
        mixer: str | MixerConfig = "concept",
        concept_loss_weight: float = 0.1,
        initializer_range: float = 0.02,
        format_version: int = FORMAT_VERSION,
        **settings: Any,
    ) -> None:
        backbone = _backbone(backbone_config)
        if format_version not in (1, FORMAT_VERSION):
            raise CocomixError(f"format_version is {format_version!r}; this cocomix reads 1 and {FORMAT_VERSION}")
        settings = _current(settings, format_version)
        self.format_version = FORMAT_VERSION
        self.backbone_config = backbone
        self.concept_loss_weight = concept_loss_weight
        self.initializer_range = initializer_range
        if isinstance(mixer, MixerConfig):
            self.mixer = mixer
        else:
            known = {name for config in MIXERS.values() for name in config.setting_names()}
            own = {name: settings.pop(name) for name in list(settings) if name in known}
            if mixer in MIXERS and MIXERS[mixer].has_concepts:
                own.setdefault("num_concepts", 32768)
            elif format_version == 1 and mixer in MIXERS:  # format 1 stored every mixer's settings
                own = {name: value for name, value in own.items() if name in MIXERS[mixer].setting_names()}
            self.mixer = mixer_config(mixer, own)
        for name in ("bos_token_id", "eos_token_id", "pad_token_id"):
            settings.setdefault(name, getattr(backbone, name, None))
        # Otherwise the base class would reset a loaded backbone's attention to None, which drops its causal mask.
        settings.setdefault("attn_implementation", backbone._attn_implementation)
        is_tied = bool(getattr(backbone, "tie_word_embeddings", False))
        if settings.setdefault("tie_word_embeddings", is_tied) != is_tied:
            raise CocomixError(f"tie_word_embeddings is the backbone's setting, which is {is_tied} there")
        unknown = sorted(name for name in settings if not name.startswith("_") and name not in _TRANSFORMERS_SETTINGS)
        if unknown:
            raise CocomixError(f"unknown setting {unknown[0]!r}; the backbone's own settings belong in backbone_config")
        super().__init__(**settings)
        self.validate()

    def __getattr__(self, name: str) -> Any:
        """The mixer's settings by their own names."""
        mixer = self.__dict__.get("mixer")
        if mixer is not None and name in mixer.setting_names():
            return getattr(mixer, name)
        raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")

    def __setattr__(self, name: str, value: Any) -> None:
        mixer = self.__dict__.get("mixer")
        if name != "mixer" and mixer is not None and name in mixer.setting_names():
            name, value = "mixer", mixer_config(mixer.mixer, dataclasses.asdict(mixer) | {name: value})
        # Read again at saving, perhaps from another working directory; an empty one is no folder.
        if name == "_name_or_path" and value and Path(value).is_dir():
            value = str(Path(value).absolute())
        super().__setattr__(name, value)

    @classmethod
    def from_dict(cls, config_dict: dict[str, Any], **options: Any) -> Any:
        """A configuration from stored settings; those of version 0.1 have no format version."""
        importlib.import_module("cocomix.modeling.model")  # a configuration alone is of no use to AutoModelForCausalLM
        return super().from_dict({"format_version": 1, **config_dict}, **options)

    def save_pretrained(
        self, save_directory: str | os.PathLike[str], push_to_hub: bool = False, **options: Any
    ) -> None:
        """Save the settings, and what is kept beside the weights that were loaded: concepts' metadata and the model card.

        `save_pretrained` of a model calls this, and `push_to_hub` calls that. A card that is already there is kept.
        Where the folder that was loaded is gone, there is a warning.
        """
        super().save_pretrained(save_directory, push_to_hub, **options)
        source, target = Path(self._name_or_path), Path(save_directory)
        if not self._name_or_path or target.resolve() == source.resolve():
            return
        if source.is_absolute() and not source.is_dir():
            say(
                f"warning: {source}, from which the model was loaded, is gone; names and statistics of concepts and a model "
                f"card that it had are not copied to {target}"
            )
        for name in (*CONCEPT_METADATA_NAMES, CARD_NAME):
            if (source / name).is_file() and not (name == CARD_NAME and (target / name).exists()):
                with atomic(target / name) as partial:
                    shutil.copyfile(source / name, partial)

    def to_dict(self) -> dict[str, Any]:
        """The settings to store, with the mixer's settings flat."""
        stored: dict[str, Any] = super().to_dict()
        return stored | dataclasses.asdict(stored.pop("mixer"))

    def get_text_config(self, decoder: bool | None = None, encoder: bool | None = None) -> PreTrainedConfig:
        """The backbone's configuration, which generation, caches and resized vocabularies use."""
        return self.backbone_config

    @property
    def vocab_size(self) -> int:
        return int(self.backbone_config.vocab_size)

    @property
    def hidden_size(self) -> int:
        return int(self.backbone_config.hidden_size)

    @property
    def num_hidden_layers(self) -> int:
        return int(self.backbone_config.num_hidden_layers)

    @property
    def max_position_embeddings(self) -> int:
        return int(self.backbone_config.max_position_embeddings)

    def validate(self) -> None:
        """Check numbers, and the mixer against the backbone; repeated when a model is built, in case settings changed."""
        for name in ("concept_loss_weight", "initializer_range"):
            value = getattr(self, name)
            if not isinstance(value, int | float) or not 0 <= value < math.inf:
                raise CocomixError(f"{name} is {value!r}; it must be a number of at least 0")
        self.mixer.check(self.num_hidden_layers)


def _current(settings: dict[str, Any], format_version: int) -> dict[str, Any]:
    """Settings with their current names and conventions."""
    settings = dict(settings)
    for name in _REFUSED:
        if settings.pop(name, None) is not None:
            raise CocomixError(f"{name} is set, but only cocomix 0.1 had this approximation")
    if "insert_layer" in settings:
        before = settings.pop("insert_layer")
        is_whole = isinstance(before, int) and not isinstance(before, bool)
        settings.setdefault("layer", before - 1 if is_whole else before)
    if format_version == 1:
        settings["rescale_epsilon"] = 1e-5
    return settings


def _backbone(config: Any) -> PreTrainedConfig:
    """The backbone's configuration, from a configuration, a dictionary or None."""
    if config is None:  # transformers builds every configuration class without arguments, to compare with
        config = {"model_type": "gpt2"}
    if isinstance(config, dict):
        if config.get("model_type") not in CONFIG_MAPPING:
            raise CocomixError(
                f"backbone_config has model_type {config.get('model_type')!r}, which transformers does not know"
            )
        config = AutoConfig.for_model(**config)
    if not isinstance(config, PreTrainedConfig):
        raise CocomixError(
            f"backbone_config is {config!r}; expected a configuration of transformers, or its dictionary"
        )
    return config


AutoConfig.register(CoCoMixConfig.model_type, CoCoMixConfig, exist_ok=True)
