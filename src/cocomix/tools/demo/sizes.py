"""The settings of the demo at each size."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Literal

from cocomix.base.errors import CocomixError
from cocomix.labels.config import AttributionConfig
from cocomix.mixers.config import ConceptConfig, PauseConfig
from cocomix.objectives.config import ConceptLossConfig
from cocomix.training.config import StudentConfig
from cocomix.training.recipes import ACTIVATION_LABELS, RECOMMENDED_LOSS, RECOMMENDED_MIXING

SizeName = Literal["smoke", "default", "large"]


@dataclass(frozen=True)
class StudentRun:
    """One student of the demo."""

    title: str
    """Its name in the report."""
    student: StudentConfig
    attribution: AttributionConfig | None = None
    """How its concept labels are chosen; None: it uses no labels."""
    distillation_weight: float = 0.0
    concept_loss: ConceptLossConfig = field(default_factory=ConceptLossConfig)


@dataclass(frozen=True)
class DemoSize:
    """All settings of a demo except its corpus and seed. Token counts are rounded up to whole steps."""

    vocab_size: int
    context_length: int
    max_bytes: int
    """Size of the text; a larger corpus is sampled by random documents."""
    teacher: StudentConfig
    teacher_tokens: int
    sae_layer: int
    num_latents: int
    num_active_latents: int
    sae_tokens: int
    sae_tokens_per_update: int
    students: Mapping[str, StudentRun] = field(repr=False)
    student_tokens: int
    batch_size: int
    learning_rate: float
    curve_windows: int
    """Validation windows for each point of a curve."""
    report_windows: int | None
    """Validation windows for the table, the probes and the autoencoder; None: all."""
    inspected_windows: int
    """Validation windows for the concept cards."""


def demo_size(name: str) -> DemoSize:
    """The settings of a size by name."""
    sizes = {"smoke": smoke, "default": default, "large": large}
    if name not in sizes:
        raise CocomixError(f"size is {name!r}; it must be one of {', '.join(sizes)}")
    return sizes[name]()


def default() -> DemoSize:
    """At most 15 minutes on two cores; the teacher sees twice its students' tokens."""
    student = StudentConfig(hidden_size=128, num_layers=4, num_heads=4)
    return DemoSize(
        vocab_size=2048,
        context_length=128,
        max_bytes=24_000_000,
        teacher=student,
        teacher_tokens=2_000_000,
        sae_layer=2,
        num_latents=1024,
        num_active_latents=16,
        sae_tokens=1_000_000,
        sae_tokens_per_update=1024,
        students=_pair(student),
        student_tokens=1_000_000,
        batch_size=8,
        learning_rate=3e-3,
        curve_windows=384,
        report_windows=None,
        inspected_windows=1024,
    )


def smoke() -> DemoSize:
    """At most a minute: every stage runs, and no model learns much."""
    student = StudentConfig(hidden_size=32, num_layers=2, num_heads=2)
    return replace(
        default(),
        vocab_size=512,
        context_length=64,
        max_bytes=1_000_000,
        teacher=student,
        teacher_tokens=65_536,
        sae_layer=0,
        num_latents=128,
        num_active_latents=8,
        sae_tokens=32_768,
        sae_tokens_per_update=512,
        students=_pair(student, 8),
        student_tokens=32_768,
        curve_windows=32,
        report_windows=64,
        inspected_windows=64,
    )


def large() -> DemoSize:
    """About two hours: more tokens, and three more students: distillation, pause tokens and the paper's exact variant."""
    student = StudentConfig(hidden_size=128, num_layers=4, num_heads=4)
    paper = replace(student, mixer=ConceptConfig(mixing="interleave"))
    paper_labels = AttributionConfig(criterion="attribution", point="original", loss="all_future", sign="raises_loss")
    runs = {
        **_pair(student),
        "cocomix-paper": StudentRun("CoCoMix, the paper’s exact variant", paper, paper_labels),
        "pause": StudentRun("Pause tokens", replace(student, mixer=PauseConfig())),
        "kd": StudentRun("Distillation", student, distillation_weight=0.1),
    }
    return replace(
        default(),
        teacher=StudentConfig(hidden_size=192, num_layers=6, num_heads=6),
        teacher_tokens=8_000_000,
        sae_layer=3,
        num_latents=4096,
        sae_tokens=4_000_000,
        students=runs,
        student_tokens=3_500_000,
    )


def _pair(student: StudentConfig, num_active_concepts: int = 32) -> dict[str, StudentRun]:
    mixer = ConceptConfig(mixing=RECOMMENDED_MIXING, num_active_concepts=num_active_concepts)
    cocomix = replace(student, mixer=mixer)
    return {
        "ntp": StudentRun("NTP", student),
        "cocomix": StudentRun("CoCoMix", cocomix, ACTIVATION_LABELS, concept_loss=RECOMMENDED_LOSS),
    }
