"""How labels are chosen, and the configurations of the commands that read a teacher: `extract` and `distill-targets`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, get_args

import tyro

from cocomix.base.command import CommandConfig, beside
from cocomix.base.compute import Compute, ComputeConfig
from cocomix.base.errors import MAX_SIZE, CocomixError, require_at_least

AttributionPoint = Literal["original", "reconstruction"]
AttributionLoss = Literal["all_future", "next_token"]
AttributionValue = Literal["activation", "pre_activation"]
AttributionSign = Literal["raises_loss", "lowers_loss", "magnitude"]
LabelCriterion = Literal["attribution", "activation_value"]

Control = Literal["none", "random", "shuffled", "frequency"]
#: Controls that are made from finished labels, without a teacher.
DERIVED_CONTROLS: tuple[Control, ...] = ("shuffled", "frequency")

_NAMES = {
    "criterion": LabelCriterion,
    "point": AttributionPoint,
    "loss": AttributionLoss,
    "value": AttributionValue,
    "sign": AttributionSign,
    "control": Control,
}


@dataclass(frozen=True)
class AttributionConfig:
    """How labels are chosen. The paper's released code: attribution, original, all_future, activation, raises_loss."""

    criterion: LabelCriterion = "activation_value"
    """Largest score of a = c * d(loss)/dc (the paper's), or largest c (its ablation), for which point, loss, value and sign
    are unused."""
    point: AttributionPoint = "original"
    """Gradient at h_t (the released code), or at Dec(c_t) in place of h_t alone (the paper's text; needs loss
    `next_token`)."""
    loss: AttributionLoss = "all_future"
    """Gradient of the sum of -log p(x_s) over all s > t (the released code), or of s = t + 1 only (the paper's text)."""
    value: AttributionValue = "activation"
    """a_i = c_i * d(loss)/dc_i of the active latents (the released code), or z_i * d(loss)/dc_i of all C latents with the
    encoder's output z before its activation (the paper's first version)."""
    sign: AttributionSign = "raises_loss"
    """Top of +a (paper and released code: their presence makes the true token less likely), of -a, or of |a|."""
    num_labels: Annotated[int, tyro.conf.arg(aliases=("--num-labels",))] = 4
    """A, the most labels a token can have (the paper's K_attr); only latents with a positive score are labels."""
    control: Control = "none"
    """Labels to compare the true ones with. random: the same labels of a fixed random dictionary. shuffled: true labels,
    permuted over the labelled positions of each window. frequency: concepts drawn from the histogram of the true labels."""
    seed: int = 0
    """Seed of the control."""

    common: ClassVar[tuple[str, ...]] = ("criterion", "num_labels")

    def __post_init__(self) -> None:
        require_at_least(1, self, "num_labels", maximum=MAX_SIZE)
        require_at_least(0, self, "seed")
        for name, allowed in _NAMES.items():
            if getattr(self, name) not in get_args(allowed):
                raise CocomixError(
                    f"{name} is {getattr(self, name)!r}; it must be one of {', '.join(get_args(allowed))}"
                )
        if self.criterion == "attribution" and (self.point, self.loss) == ("reconstruction", "all_future"):
            raise CocomixError(
                "point 'reconstruction' with loss 'all_future' would need a backward pass for every position; use loss "
                "'next_token' (with this point the paper's text), or point 'original' (with this loss its released code)"
            )

    @property
    def names_that_matter(self) -> tuple[str, ...]:
        """Settings that determine which labels come out."""
        names: tuple[str, ...] = ("criterion", "num_labels", "control")
        if self.criterion == "attribution":
            names += ("point", "loss", "value", "sign")
        return names if self.control == "none" else (*names, "seed")


@dataclass(frozen=True)
class ExtractConfig(CommandConfig):
    """Which labels, of which windows."""

    data: Path
    """Token dataset with the teacher's tokenizer."""
    output: Path
    """Folder of the concept dataset."""
    teacher: Path | None = None
    """Causal LM: a folder, a training run, a GGUF file or a Hub name."""
    sae: Path | None = None
    """Autoencoder made by `train-sae` for this teacher, or a dictionary of another origin."""
    layer: int | None = None
    """0-based block of the teacher after which the autoencoder reads; by default the one that its files name."""
    labels: Path | None = None
    """Finished concept dataset to make the controls `shuffled` and `frequency` from, in place of teacher and sae; its
    attribution settings hold for them too."""
    attribution: AttributionConfig = field(default_factory=AttributionConfig)
    scores: bool = False
    """Store the scores of the labels beside them, as float32."""
    num_windows: int | None = None
    """Label the first N training windows; by default all."""
    batch_size: int | None = None
    """Windows in one pass of the teacher; by default as many as fit into memory and are faster together."""
    windows_per_shard: int = 512
    """Windows in one file. An interruption can lose the labels of one file, ranks share the work by files, and the labels
    of two files are held in memory: one is written while the next is made."""
    compile: bool = False
    """`torch.compile` the teacher's blocks."""
    compute: Compute = field(default_factory=ComputeConfig)
    """Teacher and dictionary; labels of the controls `shuffled` and `frequency` need neither."""
    verify: bool = False
    """Only check: every byte of the finished folder and, with teacher and sae given, the labels of some windows."""
    overwrite: bool = False
    """Replace what an earlier run left in the output folder."""

    example: ClassVar[str] = "cocomix extract --teacher gpt2 --sae runs/sae --data runs/data --output runs/labels"
    common: ClassVar[Sequence[str]] = (
        *("teacher", "sae", "data", "output", "layer", "attribution", "num_windows", "batch_size"),
        *("compute", "verify", "overwrite"),
    )

    def __post_init__(self) -> None:
        require_at_least(1, self, "num_windows")
        require_at_least(1, self, "batch_size", "windows_per_shard", maximum=MAX_SIZE)
        require_at_least(0, self, "layer")
        if (self.teacher is None) != (self.sae is None):
            raise CocomixError("labels come from a teacher and its autoencoder: give --teacher and --sae")
        if self.verify:
            return
        if self.attribution.control in DERIVED_CONTROLS:
            if self.labels is None or self.teacher is not None:
                raise CocomixError(
                    f"the control {self.attribution.control!r} is made from finished labels: give --labels, without "
                    "--teacher and --sae"
                )
            if self.scores:
                raise CocomixError(
                    f"labels of the control {self.attribution.control!r} have no scores; leave out --scores"
                )
            if self.compile or self.compute != ComputeConfig():
                raise CocomixError(
                    f"labels of the control {self.attribution.control!r} are made without a model; leave out --precision, "
                    "--device and --compile"
                )
        elif self.teacher is None:
            raise CocomixError("labels come from a teacher and its autoencoder: give --teacher and --sae")
        elif self.labels is not None:
            raise CocomixError("--labels is for the controls 'shuffled' and 'frequency'; see --attribution.control")

    def settings(self) -> dict[str, Any]:
        if self.verify:
            return {}
        names = ("scores", "num_windows", "batch_size", "windows_per_shard")
        # Another batch size may round differently and so change a label.
        return _given(self, names) | ({} if self.teacher is None else {"attribution": asdict(self.attribution)})

    def next_command(self) -> Sequence[object]:
        run = beside(self.output, "cocomix")
        return () if self.verify else ("train", "--data", self.data, "--labels", self.output, "--output", run)


@dataclass(frozen=True)
class DistillTargetsConfig(CommandConfig):
    """Which draws, of which windows."""

    teacher: Path
    """Causal LM: a folder, a training run, a GGUF file or a Hub name."""
    data: Path
    """Token dataset with the teacher's tokenizer."""
    output: Path
    """Folder of the targets."""
    num_samples: int = 16
    """K, tokens drawn at each position."""
    temperature: float = 1.0
    """Divides the teacher's logits; training on the targets takes the same."""
    seed: int = 0
    """Seed of the draws."""
    num_windows: int | None = None
    """Draw for the first N training windows; by default all."""
    batch_size: int | None = None
    """Windows in one pass of the teacher; by default as many as fit into memory and are faster together."""
    windows_per_shard: int = 512
    """Windows in one file. An interruption can lose the draws of one file, ranks share the work by files, and the draws
    of two files are held in memory: one is written while the next is made."""
    compute: Compute = field(default_factory=ComputeConfig)
    """The teacher."""
    overwrite: bool = False
    """Replace what an earlier run left in the output folder."""

    example: ClassVar[str] = "cocomix distill-targets --teacher gpt2 --data runs/data --output runs/targets"
    common: ClassVar[Sequence[str]] = (
        *("teacher", "data", "output", "num_samples", "temperature", "num_windows", "batch_size"),
        *("compute", "seed", "overwrite"),
    )

    def __post_init__(self) -> None:
        require_at_least(1, self, "num_windows")
        require_at_least(1, self, "num_samples", "batch_size", "windows_per_shard", maximum=MAX_SIZE)
        require_at_least(0, self, "seed")
        if not self.temperature > 0:
            raise CocomixError(f"temperature is {self.temperature}; it must be above 0")

    def settings(self) -> dict[str, Any]:
        # Another batch size may round differently and so change a draw.
        return _given(self, ("num_samples", "temperature", "seed", "num_windows", "batch_size", "windows_per_shard"))

    def next_command(self) -> Sequence[object]:
        options = ("--distillation.weight", 0.1, "--distillation.temperature", self.temperature)
        run = ("--output", beside(self.output, "distilled"))
        return ("train", "--data", self.data, "--distillation.targets", self.output, *options, *run)


def _given(config: Any, names: Sequence[str]) -> dict[str, Any]:
    """The options that are not left to the inputs."""
    return {name: getattr(config, name) for name in names if getattr(config, name) is not None}


def require_labels(path: Path, stored: Mapping[str, Any], asked: AttributionConfig) -> None:
    """Refuse labels that were chosen another way than a run asks for.

    Args:
        path: concept dataset.
        stored: its attribution settings, which an earlier version may have accepted.
        asked: the attribution settings of a run or its recipe.
    """
    for name in asked.names_that_matter:
        actual, expected = stored.get(name, getattr(AttributionConfig, name)), getattr(asked, name)
        if actual != expected:
            raise CocomixError(
                f"the labels in {path} have {name} {actual!r}, but the run asks for {expected!r}: extract labels with "
                f"--attribution.{name} {expected}, or train with --attribution.{name} {actual} to use these"
            )
