"""What a dictionary computes with its weights, and the configuration of `cocomix train-sae`.

Three settings of other formats are missing on purpose, because their readers fold them into the weights, exactly: a factor
on the input, a factor on each latent, and a selection by activation times decoder norm.
"""

from __future__ import annotations

import math
import reprlib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Literal, get_args

from cocomix.base.command import CommandConfig, beside
from cocomix.base.compute import Compute, ComputeConfig
from cocomix.base.errors import MAX_SIZE, CocomixError, require_at_least

ACTIVATIONS = ("topk", "abstopk", "groupmax", "batchtopk", "relu", "jumprelu")
INPUT_NORMALIZATIONS = ("none", "layer_norm", "constant_norm_rescale")

#: Activations that `train-sae` trains; each has a rule in `sae/rules.py`.
TrainedActivation = Literal["topk", "batchtopk", "jumprelu"]
#: Kinds of positions that a dictionary can leave out.
ExcludedKind = Literal["first", "special", "outliers"]


@dataclass(frozen=True)
class ExcludedPositions:
    """Positions at which a dictionary was not trained and has no latents; by default there are none."""

    first: bool = False
    """The first position of a window, or of each isolated document."""
    tokens: tuple[int, ...] = ()
    """Positions of these tokens."""
    max_norm: float | None = None
    """Positions whose residual stream has a larger Euclidean norm."""

    def __post_init__(self) -> None:
        if self.max_norm is not None and not 0 < self.max_norm < math.inf:
            raise CocomixError(f"max_norm is {self.max_norm}; it must be a number above 0")

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> ExcludedPositions:
        """From what JSON makes of the fields."""
        if any(type(token) is not int for token in values["tokens"]):
            raise CocomixError(f"tokens is {reprlib.repr(values['tokens'])}; excluded tokens are whole numbers")
        return cls(values["first"], tuple(values["tokens"]), values["max_norm"])


@dataclass(frozen=True)
class SparseAutoencoderConfig:
    """Shape, input normalisation and activation of a dictionary, and where it does not apply."""

    hidden_size: int
    """D, width of the teacher's residual stream."""
    num_latents: int
    """C, size of the dictionary."""
    num_active_latents: int | None = None
    """K: latents kept for a token (`topk`, `abstopk`, `groupmax`) or on average (`batchtopk`); None where only thresholds
    decide."""
    normalize_input: str = "layer_norm"
    """Take each token's mean and scale (`layer_norm`), or its norm over sqrt(D), from it before encoding, and put them
    back after decoding."""
    activation: str = "topk"
    """The K largest pre-activations (`topk`), the largest of each of K equal groups (`groupmax`), all above one stored
    threshold (`batchtopk`), above zero (`relu`), or above a threshold each (`jumprelu`), all followed by a ReLU; or the K of
    the largest size with their signs (`abstopk`)."""
    subtract_decoder_bias: bool = True
    """Subtract the decoder's bias from the normalised input before encoding."""
    skip_connection: bool = False
    """Add a linear map of the input to the reconstruction."""
    transcode: bool = False
    """The decoder predicts the output of the module whose input the encoder reads, not that input."""
    excluded: ExcludedPositions = ExcludedPositions()
    """Positions that the dictionary leaves out."""

    def __post_init__(self) -> None:
        for name, choices in (("activation", ACTIVATIONS), ("normalize_input", INPUT_NORMALIZATIONS)):
            if getattr(self, name) not in choices:
                raise CocomixError(f"{name} is {reprlib.repr(getattr(self, name))}; choose one of {', '.join(choices)}")
        for name in ("hidden_size", "num_latents", "num_active_latents"):
            size = getattr(self, name)
            if size is not None and not 1 <= size <= MAX_SIZE:
                # Not the number itself, which can have any length.
                raise CocomixError(
                    f"{name} is {'below 1' if size < 1 else f'above {MAX_SIZE}'}; no dictionary has that"
                )
        K, C = self.num_active_latents, self.num_latents
        if self.activation in ("relu", "jumprelu"):
            if K is not None:
                raise CocomixError(f"num_active_latents is {K}; activation {self.activation!r} has no fixed number")
        elif K is None or not 1 <= K <= C:
            raise CocomixError(f"num_active_latents is {K}; it must lie between 1 and num_latents ({C})")
        elif self.activation == "groupmax" and C % K:
            raise CocomixError(f"activation 'groupmax' needs num_latents ({C}) divisible by num_active_latents ({K})")

    @property
    def max_active_latents(self) -> int:
        """The most latents that can be active at one token."""
        if self.activation in ("topk", "abstopk", "groupmax") and self.num_active_latents is not None:
            return self.num_active_latents
        return self.num_latents


#: Values of later options with which a training is what it was before there were such options, and its settings too.
_AS_BEFORE = {"activation": "topk", "exclude": [], "warmup_fraction": 0.0, "decay_fraction": 0.2}


@dataclass(frozen=True)
class TrainSaeConfig(CommandConfig):
    """Dictionaries of one or several layers of one teacher."""

    teacher: Path
    """Causal LM of any supported family: a folder, a training run, a GGUF file or a Hub name."""
    data: Path
    """Token dataset with the teacher's tokenizer."""
    output: Path
    """Folder of the autoencoder; with several layers it gets one folder for each, such as `layer-03`."""
    layer: int | tuple[int, ...] = 2
    """0-based block of the teacher after which activations are read; several share the teacher's pass."""
    num_latents: int = 1024
    """C, size of a dictionary."""
    k: int = 16
    """K, latents active for a token; on average with the activations `batchtopk` and `jumprelu`."""
    activation: TrainedActivation = "topk"
    """The K largest of each token (`topk`), the K times N largest of N tokens (`batchtopk`), or all above a learned threshold
    each, with a penalty on another mean number than K (`jumprelu`)."""
    exclude: tuple[ExcludedKind, ...] = ("outliers",)
    """Positions to leave out: the first one of a window (`first`), those of special tokens (`special`), those whose residual
    stream is more than 10 times the median norm (`outliers`), or none at all."""
    num_tokens: int = 1_000_000
    """Tokens to read, rounded up to whole steps."""
    batch_size: int = 64
    """Windows that the teacher reads in a step."""
    tokens_per_update: int = 1024
    """Tokens in one optimizer step."""
    num_windows: int | None = None
    """Train on the first N windows; by default all."""
    learning_rate: float | None = None
    """Adam's; by default 1e-3 / sqrt(num_latents / 2^14)."""
    warmup_fraction: float = 0.0
    """Part of the steps over which the learning rate rises from zero."""
    decay_fraction: float = 0.2
    """Part of the steps, at the end, over which it falls to zero."""
    dead_after_tokens: int | None = None
    """A latent that was active at none of this many tokens is dead, and the auxiliary loss trains it; by default a tenth of
    num_tokens, at most 10 million."""
    num_auxiliary_latents: int | None = None
    """Dead latents that the auxiliary loss uses for a token; by default half the teacher's width, at most 512."""
    max_validation_windows: int | None = None
    """Measure quality on N evenly spaced validation windows; by default on all."""
    num_counted_tokens: int = 1_000_000
    """Count dead latents on at least this many tokens that were not trained on: the validation windows above, and where
    they are too few, training windows that no step read, as far as any are left."""
    seed: int = 0
    """Seed of the initial weights and the order of tokens."""
    checkpoint_every_steps: int = 25
    """Steps between checkpoints."""
    cache: Path | None = None
    """Folder that keeps the activations of all steps, for other dictionaries of the same layers, text, order and batch size;
    the teacher then runs once for all of them."""
    cache_gigabytes: float = 20.0
    """The most that the cache may take; a run that needs more is refused."""
    compute: Compute = field(default_factory=ComputeConfig)
    overwrite: bool = False
    """Replace what an earlier run left in the output folder."""

    example: ClassVar[str] = "cocomix train-sae --teacher gpt2 --data runs/data --layer 5 --output runs/sae"
    common: ClassVar[Sequence[str]] = (
        *("teacher", "data", "output", "layer", "num_latents", "k", "activation", "num_tokens", "batch_size"),
        *("learning_rate", "max_validation_windows", "compute", "seed", "overwrite"),
    )
    opens: ClassVar[str] = "quality.html"

    def __post_init__(self) -> None:
        require_at_least(1, self, "num_tokens", "num_windows")
        require_at_least(1, self, "num_latents", "k", "batch_size", maximum=MAX_SIZE)
        require_at_least(2, self, "tokens_per_update", maximum=MAX_SIZE)  # one token has no variance to explain
        if self.learning_rate is not None and not 0 < self.learning_rate < math.inf:
            raise CocomixError(f"learning_rate is {self.learning_rate}; it must be a number above 0")
        for name, choices, given in (
            ("activation", get_args(TrainedActivation), {self.activation}),
            ("exclude", get_args(ExcludedKind), {*self.exclude}),
        ):
            if unknown := given - {*choices}:
                raise CocomixError(f"{name} is {min(unknown)!r}; choose from {', '.join(choices)}")
        for name in ("warmup_fraction", "decay_fraction"):
            if not 0 <= getattr(self, name) <= 1:
                raise CocomixError(f"{name} is {getattr(self, name)}; it must lie between 0 and 1")
        if not 0 < self.cache_gigabytes < math.inf:
            raise CocomixError(f"cache_gigabytes is {self.cache_gigabytes}; it must be a number above 0")
        if any(layer < 0 for layer in self.layers):
            raise CocomixError(f"layer is {self.layer}; blocks are counted from 0")
        require_at_least(1, self, "dead_after_tokens", "max_validation_windows", "checkpoint_every_steps")
        require_at_least(0, self, "num_auxiliary_latents", "num_counted_tokens", "seed")
        if self.k > self.num_latents:
            raise CocomixError(f"k is {self.k}; it must be at most num_latents ({self.num_latents})")
        if not self.layers or len(set(self.layers)) < len(self.layers):
            raise CocomixError(f"layer is {self.layer}; it must name one block, or several that differ")

    def settings(self) -> dict[str, Any]:
        """Those of all layers."""
        inputs = ("teacher", "data", "layer", "num_windows")
        others = ("output", "overwrite", "checkpoint_every_steps", "compute", "cache", "cache_gigabytes")
        settings = {name: value for name, value in asdict(self).items() if name not in inputs + others}
        settings["exclude"] = sorted({*self.exclude})
        return {name: value for name, value in settings.items() if _AS_BEFORE.get(name, ...) != value}

    def next_command(self) -> Sequence[object]:
        words = ("extract", "--teacher", self.teacher, "--sae", self.outputs[0], "--data", self.data)
        return (*words, "--output", beside(self.output, "labels"))

    @property
    def layers(self) -> tuple[int, ...]:
        """All layers, ascending."""
        return (self.layer,) if isinstance(self.layer, int) else tuple(sorted(self.layer))

    @property
    def outputs(self) -> tuple[Path, ...]:
        """Folders of all autoencoders."""
        return tuple(map(self.layer_output, self.layers))

    def layer_output(self, layer: int) -> Path:
        """Folder of one layer's autoencoder."""
        return self.output if len(self.layers) == 1 else self.output / f"layer-{layer:02d}"
