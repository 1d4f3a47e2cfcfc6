"""Settings of each mixer, and what follows from them without weights: layout, needs, costs, checks, fingerprint.

This file does not import torch, so that command lines are checked at once. The modules are in `concept.py`, `pause.py` and
`none.py`. On disk, in YAML and on the command line the settings are flat, and `mixer` names the mixer they belong to.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from types import UnionType
from typing import TYPE_CHECKING, Any, ClassVar, Literal, TypeVar, Union, cast, get_args, get_origin, get_type_hints

from cocomix.base.errors import MAX_SIZE, CocomixError, nearest
from cocomix.mixers.mixing import MIXINGS

if TYPE_CHECKING:
    from cocomix.mixers.base import Mixer
    from cocomix.mixers.layout import Layout

PositionMode = Literal["shared", "sequential"]
Count = Literal["algorithmic", "counter"]

#: How concepts are mixed in where nobody says it: by the command line, the recipe `recommended` and `from_backbone`.
RECOMMENDED_MIXING = "add"


@dataclass(frozen=True)
class MixerConfig:
    """Settings of a mixer. To write your own, subclass `InsertedConfig` and override what differs."""

    mixer: str = ""
    """What is inserted into the decoder."""

    common: ClassVar[tuple[str, ...]] = ("mixer",)
    """Options that `--help` shows."""
    module: ClassVar[Any]
    """The mixer's class; `register_mixer` sets it."""
    inserts: ClassVar[bool] = True
    """Whether anything is inserted. If not, a trained model is saved as the plain decoder."""
    has_concepts: ClassVar[bool] = False
    """Whether the mixer predicts concepts and learns them from labels; its module is then a `ConceptMixer`."""
    published: ClassVar[Mapping[str, Any]] = {}
    """Options added later, left out of a run's fingerprint while they have these values."""

    def __post_init__(self) -> None:
        if self.mixer != type(self).mixer:
            raise CocomixError(f"mixer is {self.mixer!r}, but these are settings of the mixer {type(self).mixer!r}")

    @classmethod
    def setting_names(cls) -> list[str]:
        """The names of its settings, `mixer` among them."""
        return [field.name for field in dataclasses.fields(cls)]

    @property
    def mixes(self) -> bool:
        """Whether hidden states depend on what the mixer adds."""
        return self.inserts

    @property
    def unsteerable(self) -> str:
        """Why a model with this mixer has nothing to steer, as what comes after "the model"; empty if it has."""
        if not self.has_concepts:
            return f"has no concepts (mixer {self.mixer!r})"
        return "" if self.mixes else "predicts its concepts but does not mix them in (mixing 'none')"

    @property
    def insertion(self) -> int:
        """Number of blocks that run before the mixer."""
        return 0

    @property
    def layout(self) -> Layout:
        """Layout of the positions above the mixer."""
        from cocomix.mixers.layout import Layout

        return Layout()

    @property
    def position_mode(self) -> PositionMode:
        """Rotary positions above the mixer."""
        return "shared"

    def check(self, num_blocks: int) -> None:
        """Refuse settings that don't fit a decoder with `num_blocks` blocks."""

    def num_active_parameters(self, hidden_size: int) -> int:
        """Number of the mixer's parameters that one token uses, without biases, as in the paper."""
        return 0

    def forward_flops(self, hidden_size: int, count: Count) -> float:
        """FLOPs per token of text in a forward pass; `count` as in `modeling/flops.py`."""
        return 0.0

    def backward_flops(self, hidden_size: int, count: Count, *, has_concept_loss: bool) -> float:
        """FLOPs per token of text in a backward pass."""
        return 2 * self.forward_flops(hidden_size, count)

    def settings(self) -> dict[str, Any]:
        """The settings that enter a run's fingerprint."""
        values = dataclasses.asdict(self)
        return {name: value for name, value in values.items() if self.published.get(name, ...) != value}

    def describe(self) -> str:
        """A short description, for tables."""
        return self.mixer

    def changed(self, **changes: Any) -> Any:
        """The same settings with some values replaced."""
        return dataclasses.replace(self, **changes)

    def build(self, hidden_size: int) -> Mixer:
        """The module, with uninitialised weights."""
        return self.implementation()(self, hidden_size)

    @classmethod
    def implementation(cls) -> type[Mixer]:
        """The mixer's class, registered with these settings."""
        registered: type[Mixer] | None = vars(cls).get("module")
        return registered if registered is not None else cls._built_in()

    @classmethod
    def _built_in(cls) -> type[Mixer]:
        """The class of a built-in mixer, imported when needed."""
        raise CocomixError(f"no class is registered for the mixer {cls.mixer!r}; pass it to cocomix.register_mixer")


@dataclass(frozen=True)
class NoMixerConfig(MixerConfig):
    """Settings of the plain decoder: nothing is inserted."""

    mixer: str = "none"

    inserts: ClassVar[bool] = False

    @classmethod
    def _built_in(cls) -> type[Mixer]:
        from cocomix.mixers.none import NoMixer

        return NoMixer


@dataclass(frozen=True)
class InsertedConfig(MixerConfig):
    """Settings shared by mixers that insert one vector per token."""

    mixing: str = "interleave"
    """How the vector enters: `interleave` (the paper's: its own position after each token), `interleave_residual` (the
    same, started from the token's hidden state), `add` (to the hidden state, no extra position) or `none`."""
    layer: int = 0
    """0-based block after which the mixer is inserted; -1: below the first block. (The paper names the block before which
    it is inserted, which is one more.)"""
    position_mode: PositionMode = "shared"
    """Rotary positions of a token and its concept: t for both (`shared`), or 2t and 2t + 1 (`sequential`)."""
    concept_stride: int = 1
    """Tokens per interleaved concept position; above 1 it is a cheaper approximation."""

    common: ClassVar[tuple[str, ...]] = ("mixer", "mixing", "layer")
    published: ClassVar[Mapping[str, Any]] = {"concept_stride": 1}

    def __post_init__(self) -> None:
        super().__post_init__()
        for name, allowed in (("mixing", tuple(MIXINGS)), ("position_mode", get_args(PositionMode))):
            if getattr(self, name) not in allowed:
                raise CocomixError(f"{name} is {getattr(self, name)!r}; it must be one of {', '.join(allowed)}")
        require_whole(self, -1, "layer")
        require_whole(self, 1, "concept_stride")
        if self.concept_stride != 1 and not MIXINGS[self.mixing].interleaves:
            raise CocomixError(
                f"concept_stride is {self.concept_stride}, but mixing {self.mixing!r} does not interleave; set it to 1"
            )

    @property
    def mixes(self) -> bool:
        return self.mixing != "none"

    @property
    def insertion(self) -> int:
        return self.layer + 1

    @property
    def layout(self) -> Layout:
        from cocomix.mixers.layout import Layout

        return Layout(self.concept_stride) if MIXINGS[self.mixing].interleaves else Layout()

    def check(self, num_blocks: int) -> None:
        if self.layer >= num_blocks - 1:
            raise CocomixError(
                f"--student.layer is {self.layer}, but a mixer stands below the last block: it must be -1 to "
                f"{num_blocks - 2}, also where the dictionary reads after {num_blocks - 1}"
            )

    def describe(self) -> str:
        return f"{self.mixer} ({self.mixing}), after block {self.layer}"


@dataclass(frozen=True)
class PauseConfig(InsertedConfig):
    """Settings of `PauseMixer`: one learned vector in place of every concept vector."""

    mixer: str = "pause"

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.mixes:
            raise CocomixError("mixer 'pause' with mixing 'none' would insert nothing; use mixer 'none'")

    @classmethod
    def _built_in(cls) -> type[Mixer]:
        from cocomix.mixers.pause import PauseMixer

        return PauseMixer


@dataclass(frozen=True)
class ConceptConfig(InsertedConfig):
    """Settings of `ConceptMixer`: predict concepts, compress the strongest, mix them in (paper, section 3.2)."""

    mixer: str = "concept"
    num_concepts: int | None = None
    """C, number of concepts: the latents of the autoencoder. By default as many as the labels have."""
    num_active_concepts: int = 32
    """K_mix, number of concepts kept in the mixture."""
    rescale_epsilon: float = 0.0
    """Epsilon added to the standard deviation when the vector is scaled back. The paper's code adds none; version 0.1 of
    cocomix added 1e-5, and models trained with it still do."""

    has_concepts: ClassVar[bool] = True

    def __post_init__(self) -> None:
        super().__post_init__()
        require_whole(self, 1, "num_active_concepts")
        if self.num_concepts is None:
            return
        require_whole(self, 1, "num_concepts")
        if self.num_active_concepts > self.num_concepts:
            raise CocomixError(
                f"num_active_concepts is {self.num_active_concepts}, more than num_concepts ({self.num_concepts})"
            )

    @property
    def known_concepts(self) -> int:
        """C, once the labels have set it."""
        assert self.num_concepts is not None, "num_concepts is not known before the labels are read"
        return self.num_concepts

    def num_active_parameters(self, hidden_size: int) -> int:
        return (self.known_concepts + self.num_active_concepts) * hidden_size

    def forward_flops(self, hidden_size: int, count: Count) -> float:
        # The compression gathers rows, which torch's counter does not count.
        compression = 2 * self.num_active_concepts * hidden_size if count == "algorithmic" else 0
        return 2.0 * self.known_concepts * hidden_size + compression

    def backward_flops(self, hidden_size: int, count: Count, *, has_concept_loss: bool) -> float:
        C, K, D = self.known_concepts, self.num_active_concepts, hidden_size
        if not has_concept_loss and not self.mixes:
            return 0.0
        if count == "counter":
            return 2.0 * 2 * C * D * has_concept_loss
        # Without a concept loss, only K_mix of a token's logits have gradients.
        return 2.0 * (2 * (C if has_concept_loss else K) * D + 2 * K * D)

    @classmethod
    def _built_in(cls) -> type[Mixer]:
        from cocomix.mixers.concept import ConceptMixer

        return ConceptMixer


MIXERS: dict[str, type[MixerConfig]] = {config.mixer: config for config in (NoMixerConfig, PauseConfig, ConceptConfig)}
MixerClass = TypeVar("MixerClass")


def register_mixer(mixer: MixerClass) -> MixerClass:
    """Register a mixer under the name in its `Config`; usable as a decorator.

    Raises:
        CocomixError: another mixer has that name.
    """
    config = cast(Any, mixer).Config
    if MIXERS.get(config.mixer, config) is not config:
        raise CocomixError(f"a mixer called {config.mixer!r} is already registered")
    config.module = mixer
    MIXERS[config.mixer] = config
    return mixer


def mixer_config(name: Any, settings: Mapping[str, Any]) -> MixerConfig:
    """The settings object of the mixer called `name`.

    Raises:
        CocomixError: the mixer or a setting is unknown, or a value is wrong.
    """
    if name not in MIXERS:
        raise CocomixError(f"there is no mixer {name!r}{nearest(str(name), MIXERS)}")
    hints = get_type_hints(MIXERS[name])
    names = MIXERS[name].setting_names()
    for key, value in settings.items():
        if key not in names:
            raise CocomixError(f"the mixer {name!r} has no setting {key!r}{nearest(key, names)}")
        _require_type(key, value, hints[key])
    return MIXERS[name](**settings)


def _require_type(name: str, value: Any, hint: Any) -> None:
    """Refuse a value from outside, such as a JSON file, that has the wrong type for the setting."""
    options = get_args(hint) if get_origin(hint) in (Union, UnionType) else (hint,)
    choices = [choice for option in options if get_origin(option) is Literal for choice in get_args(option)]
    if choices and value not in choices:
        raise CocomixError(f"{name} is {value!r}; it must be one of {', '.join(map(str, choices))}")
    types = tuple(option for option in options if isinstance(option, type))
    fits = isinstance(value, types) or (float in types and isinstance(value, int))
    if types and (not fits or (isinstance(value, bool) and bool not in types)):
        kind = {int: "a whole number", float: "a number", str: "a string"}.get(types[0], types[0].__name__)
        raise CocomixError(f"{name} is {value!r}; it must be {kind}")


def require_whole(config: Any, lowest: int, *names: str) -> None:
    """Refuse settings that are not whole numbers of at least `lowest`."""
    for name in names:
        value = getattr(config, name)
        if not isinstance(value, int) or isinstance(value, bool) or value < lowest:
            raise CocomixError(f"{name} is {value!r}; it must be a whole number of at least {lowest}")
        if value > MAX_SIZE:
            raise CocomixError(
                f"{name} is above {MAX_SIZE:,}, which is more than any machine can take; choose a smaller one"
            )
