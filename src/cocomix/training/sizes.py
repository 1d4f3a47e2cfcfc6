"""The sizes that recipes come in: shapes, and settings shared by all runs of a size."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from cocomix.training.config import ParallelConfig, StudentConfig


@dataclass(frozen=True)
class Size:
    """One size. Tokenizer and windows are the paper's or the demo's."""

    name: str
    """Part of the recipes' names."""
    hidden_size: int
    """Width D of CoCoMix and pause."""
    baseline_width: int
    """Width at which a plain decoder (NTP, distillation, regression) has as many active parameters as CoCoMix."""
    num_layers: int
    """Number of decoder blocks L."""
    num_heads: int
    """Number of attention heads."""
    layer: int
    """0-based block after which a mixer is inserted."""
    learning_rate: float
    """Maximum learning rate of AdamW."""
    warmup_fraction: float
    """Share of the steps in which the rate rises."""
    num_tokens: int
    """Tokens to train on."""
    batch_size: int
    """Windows per step."""
    micro_batch_size: int | None
    """Windows per forward pass of one device; None: all windows of a step."""
    vocab_size: int
    """V, used to count parameters and FLOPs before there is a dataset; training uses the dataset's."""
    context_length: int
    """T, used to count FLOPs before there is a dataset; training uses the dataset's."""
    num_concepts: int
    """C, used if there are no labels."""
    teacher: StudentConfig
    """Shape of the teacher, used to count the cost of labels and distillation before there is a teacher."""
    teacher_layer: int
    """0-based block of the teacher after which its autoencoder of C latents reads."""
    family: str = "gpt2"
    """Architecture of the students."""
    num_active_concepts: int = 32
    """K_mix."""
    eos_token_id: int = 0
    max_validation_windows: int | None = None
    """Validation windows per evaluation; None: all."""
    checkpoint_every_steps: int = 50
    parallel: ParallelConfig = field(default_factory=ParallelConfig)


def tiny() -> Size:
    """Trains in seconds on two cores, and learns nothing well."""
    return replace(
        small(),
        name="tiny",
        hidden_size=64,
        baseline_width=70,
        num_layers=2,
        num_heads=2,
        num_tokens=200_000,
        num_concepts=512,
        teacher=StudentConfig(family="gpt2", hidden_size=64, num_layers=2, num_heads=2),
        teacher_layer=0,
        max_validation_windows=64,
    )


def small() -> Size:
    """Trains in minutes on two cores."""
    return Size(
        name="small",
        hidden_size=128,
        baseline_width=136,
        num_layers=4,
        num_heads=4,
        layer=0,
        learning_rate=3e-3,
        warmup_fraction=0.04,
        num_tokens=2_000_000,
        batch_size=8,
        micro_batch_size=None,
        vocab_size=2048,
        context_length=128,
        num_concepts=1024,
        teacher=StudentConfig(family="gpt2", hidden_size=128, num_layers=4, num_heads=4),
        teacher_layer=2,
        max_validation_windows=384,
    )


def paper_69m() -> Size:
    """The paper's smallest size."""
    return Size(
        name="69m",
        hidden_size=512,
        baseline_width=624,
        num_layers=8,
        num_heads=8,
        layer=2,
        learning_rate=6e-4,
        warmup_fraction=1 / 300,
        num_tokens=20_000_000_000,
        batch_size=512,
        micro_batch_size=8,
        vocab_size=50257,
        context_length=1024,
        num_concepts=32768,
        teacher=StudentConfig(family="gpt2", hidden_size=768, num_layers=12, num_heads=12),
        teacher_layer=5,
        checkpoint_every_steps=500,
        parallel=ParallelConfig(precision="bfloat16"),
    )


def paper_386m() -> Size:
    """The paper's middle size."""
    return replace(
        paper_69m(),
        name="386m",
        hidden_size=1024,
        baseline_width=1072,
        num_layers=24,
        num_heads=16,
        layer=4,
        learning_rate=3e-4,
    )


def paper_1b() -> Size:
    """The paper's largest size, 1.38B."""
    return replace(
        paper_386m(),
        name="1b",
        hidden_size=2048,
        baseline_width=2096,
        learning_rate=2e-4,
        batch_size=1024,
        micro_batch_size=4,
        parallel=ParallelConfig(strategy="fsdp", precision="bfloat16"),
    )


SIZES = {size.name: size for size in (tiny(), small(), paper_69m(), paper_386m(), paper_1b())}
