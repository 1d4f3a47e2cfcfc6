"""The configuration of a training run."""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, fields, make_dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

import tyro

from cocomix.base.artifacts import CARD_NAME
from cocomix.base.command import CommandConfig, beside
from cocomix.base.compute import ComputeConfig, PrecisionChoice
from cocomix.base.errors import MAX_SIZE, CocomixError, require_at_least
from cocomix.base.formats import counted
from cocomix.labels.config import AttributionConfig
from cocomix.mixers.config import MixerConfig, NoMixerConfig
from cocomix.modeling.families import require_family
from cocomix.objectives.config import (
    BUILT_IN,
    OBJECTIVES,
    ConceptLossConfig,
    DistillationConfig,
    HiddenRegressionConfig,
    MultiTokenConfig,
    NextTokenConfig,
    ObjectiveConfig,
)
from cocomix.training.trackers import require_trackers

Tracker = Literal["tensorboard", "wandb", "trackio"]

#: What learns of a student with a pretrained decoder.
Learning = Literal["mixer", "above", "all"]

if TYPE_CHECKING:  # for whoever reads them: None only until `settled` has read a pretrained decoder's own
    Size = int
    Name = str
else:
    Size = int | None
    Name = str | None

#: Metadata of nested settings that appear among their owner's on the command line, in YAML and in stored settings.
FLAT = {"flat": True}
#: Placeholders: a path that a preset leaves open, and one that a plan does not need. `check` runs once neither is left.
OPEN, NOT_NEEDED = Path("REQUIRED"), Path("NOT-NEEDED")


#: The shape of a decoder from scratch.
_SHAPE = {"family": "llama", "hidden_size": 128, "num_layers": 4, "num_heads": 4}


@dataclass(frozen=True)
class StudentConfig:
    """A decoder, from scratch or trained already, and its mixer."""

    family: Name = None  # type: ignore[assignment]
    """Architecture of the backbone, as `transformers` names it: llama, gpt2, qwen3 and others (docs/families.md). With
    student.pretrained, family and sizes are that decoder's."""
    hidden_size: Size = None  # type: ignore[assignment]
    """Width D."""
    num_layers: Size = None  # type: ignore[assignment]
    """Number of decoder blocks L."""
    num_heads: Size = None  # type: ignore[assignment]
    """Number of attention heads."""
    pretrained: Path | None = None
    """Trained decoder to continue from: a folder, a GGUF file or a Hub name. By default one with random weights."""
    train: Learning | None = None
    """What learns of a pretrained student: the `mixer` alone; the mixer, and the blocks and the final norm `above`; or `all`,
    the default."""
    train_above: int | None = None
    """0-based block above which the blocks learn with train `above`; by default the mixer's layer."""
    start_from_sae: Path | None = None
    """Autoencoder of the pretrained decoder's residual stream at the mixer's layer, as which the mixer starts."""
    mixer: Annotated[MixerConfig, tyro.conf.arg(name="")] = field(default_factory=NoMixerConfig, metadata=FLAT)
    """What is inserted into the decoder."""

    common: ClassVar[tuple[str, ...]] = ("mixer", "hidden_size", "num_layers", "num_heads", "pretrained")

    def __post_init__(self) -> None:
        if self.pretrained is None:
            for name in ("train", "train_above", "start_from_sae"):
                if getattr(self, name) is not None:
                    raise CocomixError(
                        f"student.{name} is set, but only a decoder of student.pretrained has it; give one"
                    )
            for name, value in _SHAPE.items():
                if getattr(self, name) is None:
                    object.__setattr__(self, name, value)
        require_at_least(1, self, "hidden_size", "num_heads", maximum=MAX_SIZE)
        require_at_least(1, self, "num_layers", maximum=10_000)
        if self.pretrained is None and self.hidden_size % self.num_heads:
            raise CocomixError(f"hidden_size {self.hidden_size} is not divisible by num_heads {self.num_heads}")
        if not self.mixer.inserts:
            self._check_plain()
        if self.train_above is not None and self.train != "above":
            raise CocomixError(
                "student.train_above is set, but student.train is not 'above'; set that, or leave it out"
            )
        require_at_least(-1, self, "train_above")
        if self.num_layers is not None:
            self.mixer.check(self.num_layers)
        highest = math.inf if self.num_layers is None else self.num_layers - 2
        if self.train_above is not None and self.train_above > highest:
            raise CocomixError(
                f"student.train_above is {self.train_above}; with {counted(self.num_layers or 0, 'block')} it must be -1 to "
                f"{highest}"
            )

    def check_family(self) -> None:
        """Refuse a family without an adapter; a pretrained decoder's is checked when its configuration is read."""
        if self.family is not None:
            require_family(self.family)

    def _check_plain(self) -> None:
        """Refuse what a plain decoder lacks: weights of a mixer, and its place."""
        if self.train == "mixer":
            raise CocomixError(
                f"student.train is 'mixer', but the mixer is {self.mixer.mixer!r}, so nothing would learn; train 'above' "
                "or 'all'"
            )
        if self.train == "above" and self.train_above is None:
            raise CocomixError(
                f"student.train is 'above', but the mixer {self.mixer.mixer!r} stands nowhere; give student.train_above"
            )
        if self.start_from_sae is not None:
            raise CocomixError(f"student.start_from_sae is set, but the mixer is {self.mixer.mixer!r}; use 'concept'")

    @property
    def first_learning_block(self) -> int:
        """0-based block from which on the decoder learns: L if only the mixer does."""
        if self.train == "mixer":
            return self.num_layers
        if self.train != "above":
            return 0
        return (self.mixer.insertion - 1 if self.train_above is None else self.train_above) + 1


@dataclass(frozen=True)
class OptimizerConfig:
    """AdamW with linear warm-up and cosine decay to a tenth, as in the paper (whose warm-up is 1/300 of far more steps)."""

    learning_rate: float = 3e-3
    """Maximum learning rate."""
    pretrained_learning_rate: float | None = None
    """Maximum learning rate of a pretrained decoder's own weights; by default a tenth of learning_rate, which is that of the
    mixer and of objectives' heads."""
    min_learning_rate_ratio: float = 0.1
    """Final learning rate, as a share of the maximum."""
    warmup_fraction: float = 0.04
    """Share of the steps in which the rate rises from zero."""
    beta1: float = 0.9
    """Of the mean gradient."""
    beta2: float = 0.95
    """Of the mean squared gradient."""
    weight_decay: float = 0.1
    """Decay of matrices; norms and biases are not decayed."""
    max_gradient_norm: float = 1.0
    """Larger gradients are scaled down to this norm."""

    common: ClassVar[tuple[str, ...]] = ("learning_rate",)

    def __post_init__(self) -> None:
        require_at_least(0, self, "weight_decay")
        for name in ("learning_rate", "pretrained_learning_rate", "max_gradient_norm"):
            value = getattr(self, name)
            if value is not None and not 0 < value < math.inf:
                raise CocomixError(f"optimizer.{name} is {value}; it must be above 0 and finite")
        for name in ("min_learning_rate_ratio", "warmup_fraction"):
            if not 0 <= getattr(self, name) <= 1:
                raise CocomixError(f"optimizer.{name} is {getattr(self, name)}; it must lie between 0 and 1")
        for name in ("beta1", "beta2"):
            if not 0 <= getattr(self, name) < 1:
                raise CocomixError(f"optimizer.{name} is {getattr(self, name)}; it must be at least 0 and below 1")


@dataclass(frozen=True)
class MoreObjectives:
    """Settings of registered objectives that have no field in `TrainConfig`, each in a field of its name."""

    def __iter__(self) -> Iterator[ObjectiveConfig]:
        return (getattr(self, field.name) for field in fields(self))


def more_objectives(**settings: ObjectiveConfig) -> MoreObjectives:
    """Settings of registered objectives by name; those not named keep their defaults, off."""
    return _more_objectives_of(tuple(name for name in OBJECTIVES if name not in BUILT_IN))(**settings)


@functools.cache
def _more_objectives_of(names: tuple[str, ...]) -> type[MoreObjectives]:
    """The class for these objectives, cached so that equal settings compare equal."""
    options = [(name, OBJECTIVES[name], field(default_factory=OBJECTIVES[name])) for name in names]
    return make_dataclass("MoreObjectives", options, bases=(MoreObjectives,), frozen=True)


@dataclass(frozen=True)
class ParallelConfig(ComputeConfig):
    """How a run uses its devices. Apart from the precision, none of this changes the result beyond rounding.

    On the command line `--precision` and `--device` stand for `--parallel.precision` and `--parallel.device`.
    """

    strategy: Literal["ddp", "fsdp", "hsdp"] = "ddp"
    """Under `torchrun`: every rank holds the whole model (`ddp`), its share of every tensor (`fsdp`), or its share among the
    ranks of its node, each node holding all (`hsdp`)."""
    activation_checkpointing: bool = False
    """Recompute each block's activations in the backward pass instead of keeping them."""
    compile: bool = False
    """`torch.compile` the blocks of the decoder, and of the teacher of distillation and regression."""
    logits_megabytes: int | None = None
    """Memory for a chunk of logits, over concepts or vocabulary; it changes only rounding. By default 512 on CUDA; 64 on a
    CPU, or 128 in bfloat16."""
    async_checkpoints: bool = False
    """Write checkpoints from a copy in host memory, while training goes on."""

    common: ClassVar[tuple[str, ...]] = ()

    def __post_init__(self) -> None:
        require_at_least(1, self, "logits_megabytes", maximum=MAX_SIZE)

    def num_shares(self, num_ranks: int, ranks_per_node: int) -> int:
        """Number of ranks that hold one model between them."""
        return {"ddp": 1, "fsdp": num_ranks, "hsdp": min(ranks_per_node, num_ranks)}[self.strategy]


@dataclass(frozen=True)
class TrainConfig(CommandConfig):
    """One training run: its mixer and weights make it NTP, CoCoMix, pause, distillation or regression."""

    data: Path = OPEN
    """Token dataset."""
    output: Path = OPEN
    """Folder of the run."""
    labels: Path | None = None
    """Concept dataset of the same windows. With labels, or a teacher and its sae, the student is CoCoMix, as recommended
    unless options or a recipe say otherwise."""
    teacher: Path | None = None
    """Causal LM that objectives learn from; with sae, the source of labels."""
    sae: Path | None = None
    """The teacher's autoencoder; labels are then computed on the fly instead of read from a concept dataset."""
    layer: int | None = None
    """0-based block of the teacher after which the autoencoder reads; by default the one that its files name."""
    attribution: AttributionConfig = field(default_factory=AttributionConfig)
    """How labels are chosen, on the fly or, as a check, in the concept dataset."""
    student: StudentConfig = field(default_factory=StudentConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    num_tokens: int = 1_000_000
    """Tokens to train on, rounded up to whole steps."""
    batch_size: int = 8
    """Windows per step."""
    micro_batch_size: int | None = None
    """Windows per forward pass, a divisor of batch_size; by default the whole batch."""
    num_windows: int | None = None
    """Train on the first N windows of the dataset; by default all, or all that have labels."""
    concept_loss: ConceptLossConfig = field(default_factory=ConceptLossConfig)
    """Prediction of the labelled concepts."""
    distillation: DistillationConfig = field(default_factory=DistillationConfig)
    """Distillation from the teacher's next-token distributions."""
    hidden_regression: HiddenRegressionConfig = field(default_factory=HiddenRegressionConfig)
    """Regression onto the teacher's hidden states."""
    multi_token: MultiTokenConfig = field(default_factory=MultiTokenConfig)
    """Prediction of tokens after the next one."""
    more_objectives: Annotated[MoreObjectives, tyro.conf.arg(name="")] = field(
        default_factory=more_objectives, metadata=FLAT
    )
    """Other registered objectives."""
    seed: int = 0
    """Seed of the initial weights and the data order."""
    num_evaluations: int = 20
    """Number of validation losses over the run; the last one is measured after the last step."""
    max_validation_windows: int | None = None
    """Evaluate on N evenly spaced validation windows; by default on all."""
    parallel: ParallelConfig = field(default_factory=ParallelConfig)
    """Devices, precision, memory."""
    checkpoint_every_steps: int = 50
    """Steps between checkpoints."""
    keep: int = 2
    """Number of newest checkpoints to keep."""
    trackers: tuple[Tracker, ...] = ()
    """Trackers that also show the metrics; they must be installed (extra `track`)."""
    overwrite: bool = False
    """Replace what an earlier run left in the output folder."""

    example: ClassVar[str] = (
        "cocomix train --data runs/data --labels runs/labels --output runs/cocomix --num-tokens 10M"
    )
    common: ClassVar[Sequence[str]] = (
        *("data", "output", "labels", "teacher", "sae", "num_tokens", "batch_size", "student", "optimizer", "seed"),
        "overwrite",
    )
    opens: ClassVar[str] = CARD_NAME

    def __post_init__(self) -> None:
        require_at_least(0, self, "seed", "layer")
        require_at_least(1, self, "num_tokens", "num_windows", "num_evaluations")
        require_at_least(1, self, "batch_size", maximum=MAX_SIZE)
        require_at_least(1, self, "max_validation_windows", "checkpoint_every_steps", "keep")
        if self.micro_batch_size is not None and (self.micro_batch_size < 1 or self.batch_size % self.micro_batch_size):
            raise CocomixError(f"micro_batch_size {self.micro_batch_size} does not divide batch_size {self.batch_size}")
        if not {self.data, self.output} & {OPEN, NOT_NEEDED}:
            self.check()

    @property
    def precision(self) -> PrecisionChoice:
        """Of the run's products, also those of its teacher."""
        return self.parallel.precision

    @property
    def objectives(self) -> tuple[ObjectiveConfig, ...]:
        """Settings of every objective, on or off; next-token prediction comes first."""
        own = (self.concept_loss, self.distillation, self.hidden_regression, self.multi_token)
        return (NextTokenConfig(), *own, *self.more_objectives)

    def require_whole(self) -> None:
        """Refuse a configuration without `data` or `output`."""
        missing = [f"--{name}" for name in ("data", "output") if getattr(self, name) == OPEN]
        if missing:
            raise CocomixError(f"a training run needs {' and '.join(missing)}")

    def settings(self) -> dict[str, Any]:
        settings = {name: value for name, value in flat(self).items() if name not in _NOT_SETTINGS}
        student = self.student
        if student.family is None:  # a pretrained decoder's is read later
            del settings["student"]
        else:
            plain = {each.name: getattr(student, each.name) for each in fields(student) if each.name != "mixer"}
            settings["student"] = _determining(plain) | student.mixer.settings()
        settings["optimizer"] = _determining(settings["optimizer"])
        for objective in self.objectives:
            settings.pop(objective.name, None)
            settings |= objective.settings(self)
        if self.num_windows is not None:
            settings["num_windows"] = self.num_windows
        if self.parallel.precision != "auto":
            settings["precision"] = self.parallel.precision
        return settings

    def check_files(self) -> None:
        self.student.check_family()
        require_trackers(self.trackers)

    def next_command(self) -> Sequence[object]:
        data = ("--data", self.data)
        if self.student.mixer.has_concepts:
            sources: Sequence[object] = ("--teacher", self.teacher, "--sae", self.sae) if self.sae else ()
            if self.labels is not None:  # of stored labels only a person knows the teacher and the dictionary
                sources = ("--labels", self.labels, "--teacher", "TEACHER", "--sae", "SAE")
            return ("inspect", "--model", self.output, *data, *sources, "--output", beside(self.output, "inspection"))
        if self.student.mixer.inserts or self.teacher is not None:
            return ("eval", "--model", self.output, *data, "--output", beside(self.output, "evaluation"))
        layer = () if self.student.num_layers is None else ("--layer", self.student.num_layers // 2)
        return ("train-sae", "--teacher", self.output, *data, *layer, "--output", beside(self.output, "sae"))

    def check(self) -> None:
        """Refuse settings that contradict each other."""
        for objective in self.objectives:
            objective.check(self)
        if self.teacher is not None and not any(objective.uses_teacher(self) for objective in self.objectives):
            raise CocomixError(
                "teacher is given but nothing learns from it: set distillation.weight or hidden_regression.weight, or give "
                "--sae"
            )
        if self.sae is not None and (self.teacher is None or self.labels is not None):
            raise CocomixError("labels on the fly need --teacher and --sae, and exclude --labels")
        student = self.student
        if student.train == "mixer" and not student.mixer.mixes and not self.concept_loss.is_on(self):
            raise CocomixError(
                "student.train is 'mixer', but it mixes nothing in and has no concept loss, so nothing would learn"
            )
        if self.optimizer.pretrained_learning_rate is not None and self.student.pretrained is None:
            raise CocomixError(
                "optimizer.pretrained_learning_rate is set, but there is no student.pretrained; give one"
            )
        mixer, has_labels = self.student.mixer, self.labels is not None or self.sae is not None
        if self.sae is None and self.layer is not None:
            raise CocomixError("layer is set, but applies only to labels on the fly; give --sae, or leave it out")
        if not has_labels and not mixer.has_concepts and self.attribution != AttributionConfig():
            raise CocomixError("attribution is set, but the run has no labels; give --labels or --sae, or leave it out")
        if mixer.has_concepts and not has_labels and getattr(mixer, "num_concepts", None) is None:
            raise CocomixError(f"mixer {mixer.mixer!r} without labels needs student.num_concepts")


#: Options on which the result does not depend, and paths in whose place settings have fingerprints.
_NOT_SETTINGS = (
    *("output", "overwrite", "checkpoint_every_steps", "keep", "micro_batch_size", "trackers", "parallel"),
    *("data", "labels", "teacher", "sae", "layer", "attribution", "num_windows"),
)


def _determining(values: dict[str, Any]) -> dict[str, Any]:
    """The values without paths, and without options that are not set: most came later than the first runs."""
    return {name: value for name, value in values.items() if value is not None and not isinstance(value, Path)}


def flat(config: Any) -> dict[str, Any]:
    """A configuration's fields by name, as on the command line and in YAML; nested ones are dictionaries."""
    values: dict[str, Any] = {}
    for each in fields(config):
        value = getattr(config, each.name)
        nested = flat(value) if hasattr(value, "__dataclass_fields__") else value
        values |= nested if each.metadata.get("flat") else {each.name: nested}
    return values
