"""What a training run is made of."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from cocomix.base.errors import CocomixError, require_at_least
from cocomix.labels.attribution import AttributionConfig

Schedule = Literal["constant", "linear", "cosine"]
Tracker = Literal["tensorboard", "wandb", "trackio"]
Family = Literal["llama", "gpt2", "gpt_neox", "mistral", "qwen2", "qwen3", "olmo2", "gemma2", "gemma3_text"]

#: Settings of a student that make the method cheaper and are off as published, with what they are then.
APPROXIMATIONS: dict[str, int | None] = {"concept_stride": 1, "concept_window": None, "concept_groups": None}


@dataclass(frozen=True)
class StudentConfig:
    """A decoder to train from scratch, and what is inserted into it."""

    family: Family = "llama"
    """Architecture of the backbone, as `transformers` names it."""
    hidden_size: int = 128
    """Width D."""
    num_layers: int = 4
    """Decoder blocks L."""
    num_heads: int = 4
    """Attention heads."""
    mixer: Literal["concept", "pause", "none"] = "none"
    """What is inserted: predicted concepts, a pause vector, nothing."""
    mixing: Literal["interleave", "interleave_residual", "add", "none"] = "interleave"
    """How it enters the sequence; the paper's is `interleave`."""
    insert_layer: int = 1
    """0-based block before which it is inserted."""
    position_mode: Literal["shared", "sequential"] = "shared"
    """Rotary positions of a token and its concept: both t, or 2t and 2t + 1."""
    num_active_concepts: int = 32
    """K_mix, concepts kept in the mixture."""
    concept_stride: int = 1
    """Tokens for each interleaved concept position; above 1 an approximation that costs less."""
    concept_window: int | None = None
    """Tokens that see the keys of an interleaved concept; by default all later ones."""
    concept_groups: int | None = None
    """Choose the active concepts among the best of so many groups of concepts; by default among all."""

    def __post_init__(self) -> None:
        require_at_least(1, self, "hidden_size", "num_layers", "num_heads", "num_active_concepts")
        require_at_least(1, self, *APPROXIMATIONS)
        if self.hidden_size % (2 * self.num_heads) and self.family != "gpt2":
            raise CocomixError(
                f"hidden_size {self.hidden_size} is not divisible by twice num_heads {self.num_heads} (rotary positions)"
            )
        if self.hidden_size % self.num_heads:
            raise CocomixError(f"hidden_size {self.hidden_size} is not divisible by num_heads {self.num_heads}")


@dataclass(frozen=True)
class OptimizerConfig:
    """AdamW with linear warm-up and a cosine to a tenth, as the paper's, whose warm-up is 1/300 of its many more steps."""

    learning_rate: float = 3e-3
    """Maximum learning rate."""
    min_learning_rate_ratio: float = 0.1
    """Share of the maximum that is left at the end."""
    warmup_fraction: float = 0.04
    """Share of the steps in which the rate rises from zero."""
    beta1: float = 0.9
    beta2: float = 0.95
    weight_decay: float = 0.1
    """Of matrices; norms and biases are not decayed."""
    max_gradient_norm: float = 1.0
    """Gradients are scaled down to this norm."""

    def __post_init__(self) -> None:
        require_at_least(0, self, "weight_decay")
        for name in ("learning_rate", "max_gradient_norm"):
            if not 0 < getattr(self, name) < math.inf:
                raise CocomixError(f"optimizer.{name} is {getattr(self, name)}; it must be above 0 and finite")
        for name in ("min_learning_rate_ratio", "warmup_fraction"):
            if not 0 <= getattr(self, name) <= 1:
                raise CocomixError(f"optimizer.{name} is {getattr(self, name)}; it must lie between 0 and 1")
        for name in ("beta1", "beta2"):
            if not 0 <= getattr(self, name) < 1:
                raise CocomixError(f"optimizer.{name} is {getattr(self, name)}; it must be at least 0 and below 1")


@dataclass(frozen=True)
class DistillationConfig:
    """Learning from the teacher's next-token distributions."""

    weight: float = 0.0
    """Of KL(teacher || student)."""
    schedule: Schedule = "constant"
    """Of the weight over the run."""
    temperature: float = 1.0
    """Divides both models' logits."""
    targets: Path | None = None
    """Stored sampled targets of the same windows, in place of a teacher that runs along."""

    def __post_init__(self) -> None:
        require_at_least(0, self, "weight")
        if not 0 < self.temperature < math.inf:
            raise CocomixError(f"distillation.temperature is {self.temperature}; it must be above 0 and finite")


@dataclass(frozen=True)
class HiddenRegressionConfig:
    """Regression of the student's hidden states onto the teacher's."""

    weight: float = 0.0
    """Of the mean squared error a hidden dimension."""
    schedule: Schedule = "constant"
    """Of the weight over the run."""
    layer: int | None = None
    """0-based block of the student after which its residual stream is projected; by default the one before the mixer's
    place, insert_layer - 1."""
    teacher_layer: int | None = None
    """0-based block of the teacher after which its residual stream is the target; by default the middle one."""

    def __post_init__(self) -> None:
        require_at_least(0, self, "weight", "layer", "teacher_layer")


@dataclass(frozen=True)
class ParallelConfig:
    """How a run uses its devices. The result is the same, up to rounding, but for the precision."""

    strategy: Literal["ddp", "fsdp"] = "ddp"
    """Under `torchrun`: every rank holds the whole model (`ddp`), or its share of every tensor (`fsdp`)."""
    precision: Literal["float32", "bfloat16"] = "float32"
    """Of the matrix products; weights, gradients' sums and moments stay in float32."""
    activation_checkpointing: bool = False
    """Recompute each block's activations in the backward instead of keeping them."""
    compile: bool = False
    """`torch.compile` the decoder's blocks."""
    logits_megabytes: int = 64
    """Memory of a chunk of logits that nothing else wants, over concepts or vocabulary; it changes rounding only."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where to train: `auto` is CUDA where there is any."""


@dataclass(frozen=True)
class TrainConfig:
    """One training run: NTP, CoCoMix, pause, distillation or regression, by its mixer and its weights."""

    data: Path
    """Token dataset."""
    output: Path
    """Folder of the run."""
    labels: Path | None = None
    """Concept dataset of the same windows; mixer `concept` needs it, or teacher and sae, unless concept_loss_weight is 0."""
    teacher: Path | None = None
    """Causal LM: distilled from and regressed onto where their weights are not 0; with sae, the source of labels."""
    sae: Path | None = None
    """The teacher's autoencoder: labels are computed on the fly, in place of a concept dataset."""
    layer: int | None = None
    """0-based block of the teacher after which the autoencoder reads; by default what `train-sae` wrote down."""
    attribution: AttributionConfig = field(default_factory=AttributionConfig)
    """How labels on the fly are chosen."""
    student: StudentConfig = field(default_factory=StudentConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    num_tokens: int = 1_000_000
    """Tokens to train on, rounded up to whole steps."""
    batch_size: int = 8
    """Windows in a step."""
    micro_batch_size: int | None = None
    """Windows in one forward pass; a divisor of batch_size; by default the whole batch."""
    num_windows: int | None = None
    """Train on the first so many windows of the dataset; by default all, or all that have labels."""
    concept_loss_weight: float = 0.1
    """lambda, weight of the concept loss."""
    concept_loss_schedule: Schedule = "constant"
    """Of lambda over the run: constant, or down to zero in a line or a cosine."""
    distillation: DistillationConfig = field(default_factory=DistillationConfig)
    """From the teacher's next-token distributions."""
    hidden_regression: HiddenRegressionConfig = field(default_factory=HiddenRegressionConfig)
    """Onto the teacher's hidden states."""
    num_concepts: int | None = None
    """C, where no labels say it."""
    seed: int = 0
    """Seed of the initial weights and the data order."""
    num_evaluations: int = 20
    """Validation losses over the run, the last one after the last step."""
    max_validation_windows: int | None = None
    """Evaluate on so many evenly spaced validation windows; by default on all."""
    parallel: ParallelConfig = field(default_factory=ParallelConfig)
    """Devices, precision, memory."""
    checkpoint_every_steps: int = 50
    """Steps between checkpoints."""
    keep: int = 2
    """Checkpoints kept, the newest."""
    trackers: tuple[Tracker, ...] = ()
    """Also show the metrics in these, which must be installed (extra `track`)."""
    overwrite: bool = False
    """Replace what a former run left in the output folder."""

    def __post_init__(self) -> None:
        require_at_least(0, self, "concept_loss_weight", "seed")
        require_at_least(1, self, "num_tokens", "batch_size", "num_windows", "num_concepts", "num_evaluations")
        require_at_least(1, self, "max_validation_windows", "checkpoint_every_steps", "keep")
        if self.micro_batch_size is not None and (self.micro_batch_size < 1 or self.batch_size % self.micro_batch_size):
            raise CocomixError(f"micro_batch_size {self.micro_batch_size} does not divide batch_size {self.batch_size}")
        if self.distillation.weight and self.teacher is None and self.distillation.targets is None:
            raise CocomixError("distillation.weight is set but no teacher; give --teacher, or --distillation.targets")
        if self.hidden_regression.weight and self.teacher is None:
            raise CocomixError("hidden_regression.weight is set but no teacher; give --teacher")
        learns_from_teacher = self.sae is not None or self.distillation.weight or self.hidden_regression.weight
        if self.teacher is not None and not learns_from_teacher:
            raise CocomixError(
                "teacher is given but nothing learns from it: set distillation.weight or hidden_regression.weight, or give "
                "--sae"
            )
        if self.sae is not None and (self.teacher is None or self.labels is not None):
            raise CocomixError("labels on the fly need --teacher and --sae, and leave no use for --labels")
        if self.sae is None and (self.layer is not None or self.attribution != AttributionConfig()):
            raise CocomixError("layer and attribution are of labels on the fly; give --sae, or leave them out")
        has_labels = self.labels is not None or self.sae is not None
        if has_labels and self.student.mixer != "concept":
            raise CocomixError(f"labels are given but the mixer is {self.student.mixer!r}; use mixer 'concept'")
        if self.student.mixer == "concept" and not has_labels:
            if self.concept_loss_weight:
                raise CocomixError(
                    "mixer 'concept' learns from labels: give --labels, or --teacher and --sae, or set "
                    "concept_loss_weight to 0"
                )
            if self.num_concepts is None:
                raise CocomixError("mixer 'concept' without labels needs num_concepts")
