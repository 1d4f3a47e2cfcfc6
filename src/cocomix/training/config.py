"""What a training run is made of."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from cocomix.base.errors import CocomixError, require_at_least
from cocomix.concepts.attribution import AttributionConfig

Family = Literal["llama", "gpt2", "gpt_neox", "mistral", "qwen2", "qwen3", "olmo2", "gemma2", "gemma3_text"]


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

    def __post_init__(self) -> None:
        require_at_least(1, self, "hidden_size", "num_layers", "num_heads", "num_active_concepts")
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


@dataclass(frozen=True)
class TrainConfig:
    """One training run: NTP, CoCoMix, pause or distillation, by its mixer and its weights."""

    data: Path
    """Token dataset."""
    output: Path
    """Folder of the run."""
    labels: Path | None = None
    """Concept dataset of the same windows; mixer `concept` needs it, or teacher and sae, unless concept_loss_weight is 0."""
    teacher: Path | None = None
    """Causal LM: distilled from where distillation_weight is not 0, and the source of labels where sae is given."""
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
    distillation_weight: float = 0.0
    """Weight of KL(teacher || student)."""
    distillation_temperature: float = 1.0
    """Divides both models' logits."""
    num_concepts: int | None = None
    """C, where no labels say it."""
    seed: int = 0
    """Seed of the initial weights and the data order."""
    num_evaluations: int = 20
    """Validation losses over the run, the last one after the last step."""
    max_validation_windows: int | None = None
    """Evaluate on so many evenly spaced validation windows; by default on all."""
    checkpoint_every_steps: int = 50
    """Steps between checkpoints."""
    overwrite: bool = False
    """Replace what a former run left in the output folder."""

    def __post_init__(self) -> None:
        require_at_least(1, self, "num_tokens", "batch_size", "num_windows", "num_concepts", "num_evaluations")
        require_at_least(1, self, "max_validation_windows", "checkpoint_every_steps")
        if self.micro_batch_size is not None and (self.micro_batch_size < 1 or self.batch_size % self.micro_batch_size):
            raise CocomixError(f"micro_batch_size {self.micro_batch_size} does not divide batch_size {self.batch_size}")
        if self.distillation_weight and self.teacher is None:
            raise CocomixError("distillation_weight is set but no teacher; give --teacher")
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
