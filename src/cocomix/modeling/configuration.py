"""Configuration of a CoCoMix model: the backbone's own configuration and what is inserted into it."""

from __future__ import annotations

import math
from typing import Any, ClassVar, Literal, get_args

from transformers import CONFIG_MAPPING, AutoConfig, PreTrainedConfig

from cocomix.base.errors import CocomixError
from cocomix.mixers.layout import Layout
from cocomix.mixers.mixing import MIXINGS

MixerName = Literal["concept", "pause", "none"]
MixingName = Literal["interleave", "interleave_residual", "add", "none"]
PositionMode = Literal["shared", "sequential"]


#: Settings of transformers that say nothing of the backbone.
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

    Args:
        backbone_config: configuration of the decoder, or its dictionary with `model_type` inside.
        mixer: `concept` (predict, compress and mix concepts), `pause` (one learned vector in place of every concept
            vector) or `none` (the plain backbone).
        mixing: how the vector enters: `interleave` (the paper's: a position of its own behind each token),
            `interleave_residual` (the same, started from the token's hidden state plus the vector), `add` (hidden state
            plus vector, no extra position) or `none` (concepts are predicted, not mixed).
        insert_layer: 0-based block before which the mixer sits.
        position_mode: for rotary backbones, whether a token and its concept share position t (`shared`) or stand at
            2t and 2t + 1 (`sequential`).
        num_concepts: C, concepts that can be predicted; the latents of the SAE.
        num_active_concepts: K_mix, concepts kept in the mixture.
        concept_loss_weight: lambda, weight of the concept loss in `loss`.
        initializer_range: standard deviation of the mixer's initial weights.
        concept_stride: with interleaving, tokens for each concept position; above 1 an approximation, where the next token is
            read at the token itself if no concept stands behind it.
        concept_window: with interleaving, how many tokens see the keys of a concept, its own the first; None: all later
            ones, as published.
        concept_groups: the active concepts are the strongest of so many groups, of each of which only the best can be
            one; None: the strongest of all, as published.

    Raises:
        CocomixError: a name is unknown or a number is out of range.
    """

    model_type = "cocomix"
    #: What `transformers.Trainer` leaves out of predictions beside the logits.
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

    def __init__(
        self,
        backbone_config: PreTrainedConfig | dict[str, Any] | None = None,
        mixer: str = "concept",
        mixing: str = "interleave",
        insert_layer: int = 1,
        position_mode: str = "shared",
        num_concepts: int = 32768,
        num_active_concepts: int = 32,
        concept_loss_weight: float = 0.1,
        initializer_range: float = 0.02,
        concept_stride: int = 1,
        concept_window: int | None = None,
        concept_groups: int | None = None,
        **kwargs: Any,
    ) -> None:
        backbone = _backbone(backbone_config)
        self.backbone_config = backbone
        self.mixer = mixer
        self.mixing = mixing
        self.insert_layer = insert_layer
        self.position_mode = position_mode
        self.num_concepts = num_concepts
        self.num_active_concepts = num_active_concepts
        self.concept_loss_weight = concept_loss_weight
        self.initializer_range = initializer_range
        self.concept_stride = concept_stride
        self.concept_window = concept_window
        self.concept_groups = concept_groups
        for name in ("bos_token_id", "eos_token_id", "pad_token_id"):
            kwargs.setdefault(name, getattr(backbone, name, None))
        # Otherwise the base class would reset a loaded backbone to no implementation, which leaves out its causal mask.
        kwargs.setdefault("attn_implementation", backbone._attn_implementation)
        is_tied = bool(getattr(backbone, "tie_word_embeddings", False))
        if kwargs.setdefault("tie_word_embeddings", is_tied) != is_tied:
            raise CocomixError(f"tie_word_embeddings is the backbone's setting, and there it is {is_tied}")
        unknown = sorted(name for name in kwargs if not name.startswith("_") and name not in _TRANSFORMERS_SETTINGS)
        if unknown:
            raise CocomixError(f"unknown setting {unknown[0]!r}; the backbone's own belong into backbone_config")
        super().__init__(**kwargs)
        self.validate()

    def get_text_config(self, decoder: bool | None = None, encoder: bool | None = None) -> PreTrainedConfig:
        """The backbone's: what generation, caches and resized vocabularies go by."""
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

    @property
    def layout(self) -> Layout:
        """Of the positions above the mixer."""
        return MIXINGS[self.mixing].layout(self.concept_stride, self.concept_window)

    def validate(self) -> None:
        """Check names, types and numbers; also done when a model is built, for settings that were changed since."""
        for name in ("insert_layer", "num_concepts", "num_active_concepts"):
            value = getattr(self, name)
            if not isinstance(value, int) or isinstance(value, bool):
                raise CocomixError(f"{name} is {value!r}; it must be a whole number")
        for name in ("concept_loss_weight", "initializer_range"):
            value = getattr(self, name)
            if not isinstance(value, int | float) or not 0 <= value < math.inf:
                raise CocomixError(f"{name} is {value!r}; it must be a number of at least 0")
        for name, allowed in (("mixer", MixerName), ("mixing", MixingName), ("position_mode", PositionMode)):
            if getattr(self, name) not in get_args(allowed):
                raise CocomixError(
                    f"{name} is {getattr(self, name)!r}; it must be one of {', '.join(get_args(allowed))}"
                )
        self._validate_approximations()
        if self.mixer == "none":
            return
        if not 0 <= self.insert_layer < self.num_hidden_layers:
            raise CocomixError(
                f"insert_layer is {self.insert_layer}; a decoder of {self.num_hidden_layers} blocks takes "
                f"0 to {self.num_hidden_layers - 1}"
            )
        if self.mixer == "pause" and self.mixing == "none":
            raise CocomixError("mixer 'pause' with mixing 'none' would insert nothing; use mixer 'none'")
        if not 1 <= self.num_active_concepts <= self.num_concepts:
            raise CocomixError(
                f"num_active_concepts is {self.num_active_concepts}; it must lie between 1 and num_concepts "
                f"({self.num_concepts})"
            )

    def _validate_approximations(self) -> None:
        for name, lowest in (
            ("concept_stride", 1),
            ("concept_window", 1),
            ("concept_groups", self.num_active_concepts),
        ):
            value = getattr(self, name)
            if value is None and name != "concept_stride":
                continue
            if not isinstance(value, int) or isinstance(value, bool) or value < lowest:
                raise CocomixError(f"{name} is {value!r}; it must be a whole number of at least {lowest}")
        interleaves = self.mixer != "none" and MIXINGS[self.mixing].interleaves
        if not interleaves and (self.concept_stride != 1 or self.concept_window is not None):
            raise CocomixError("concept_stride and concept_window are settings of an interleaving mixer")
        if self.concept_groups is not None:
            if self.mixer != "concept":
                raise CocomixError(f"concept_groups is set, but the mixer is {self.mixer!r}")
            if self.concept_groups > self.num_concepts:
                raise CocomixError(
                    f"concept_groups is {self.concept_groups}; there are only {self.num_concepts} concepts to group"
                )


def _backbone(given: Any) -> PreTrainedConfig:
    """A backbone's configuration from what was given for it."""
    if given is None:  # transformers builds every configuration class without arguments, to diff against
        given = {"model_type": "gpt2"}
    if isinstance(given, dict):
        if given.get("model_type") not in CONFIG_MAPPING:
            raise CocomixError(
                f"backbone_config has model_type {given.get('model_type')!r}, which transformers does not know"
            )
        given = AutoConfig.for_model(**given)
    if not isinstance(given, PreTrainedConfig):
        raise CocomixError(f"backbone_config is {given!r}; expected a configuration of transformers, or its dictionary")
    return given
