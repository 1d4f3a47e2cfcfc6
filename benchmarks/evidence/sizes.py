"""The sizes: shapes, tokens, teachers, and which part of the comparison each runs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from cocomix.training.config import StudentConfig
from cocomix.training.sizes import SIZES as RECIPE_SIZES
from cocomix.training.sizes import Size

#: Queries and keys are normalised, which bears higher learning rates.
FAMILY = "qwen3"
#: Active latents of the dictionaries, as in the demo.
NUM_ACTIVE_LATENTS = 16
#: Of the comparisons; others are for variants.
TEACHERS = ("weak", "strong")


@dataclass(frozen=True)
class Teacher:
    """A teacher; `layer` is the 0-based block after which its dictionary reads, `tokens` what it is trained on."""

    shape: StudentConfig
    layer: int
    tokens: int
    #: None: that of its size.
    learning_rate: float | None = None
    seed: int = 0
    #: No student overtakes it.
    ahead: bool = False


def more_teachers(weak: Teacher, student: StudentConfig, num_tokens: int) -> dict[str, Teacher]:
    """Of variants: the weak one with its initial weights, after one step at a rate that changes none; and one like its
    student, of a seed that no student has.
    """
    return {
        "untrained": replace(weak, tokens=1, learning_rate=1e-12),
        "like-student": Teacher(student, weak.layer, num_tokens, seed=1000),
    }


@dataclass(frozen=True)
class Regime:
    """A size and what is compared at it.

    Args:
        size: shape, tokens, batch and vocabulary of the students.
        teachers: by name; those of `TEACHERS` are compared.
        rates: grid of learning rates, of a size that is its own `sweep`.
        corpora: names.
        rows: names of the main table's rows; None: all.
        seeds: of the main table.
        shares: by teacher, whole schedules on shares of the tokens, in percent, to see where NTP's loss is reached.
        sweep: size whose tables choose rates and weights; None: the size's rate, and each row's first weight.
        dictionary_tokens: each dictionary is trained on.
        compile: blocks of students and teachers; on the CPU this needs a C++ compiler.
        max_bytes: of the standard library.
    """

    size: Size
    teachers: Mapping[str, Teacher]
    rates: tuple[float, ...] = ()
    corpora: tuple[str, ...] = ("prose", "standard_library")
    rows: tuple[str, ...] | None = None
    seeds: tuple[int, ...] = (0, 1, 2)
    shares: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    sweep: str | None = "nano"
    dictionary_tokens: int = 2_000_000
    compile: bool = False
    max_bytes: int = 24_000_000


def shape(width: int, blocks: int, head_width: int = 32) -> StudentConfig:
    return StudentConfig(family=FAMILY, hidden_size=width, num_layers=blocks, num_heads=width // head_width)


def size(name: str, student: StudentConfig, teacher: Teacher, **changes: object) -> Size:
    """A size whose decoder is `student`; `teacher` is the one with which costs are planned."""
    return replace(
        RECIPE_SIZES["small"],
        name=name,
        family=FAMILY,
        hidden_size=student.hidden_size,
        baseline_width=student.hidden_size,
        num_layers=student.num_layers,
        num_heads=student.num_heads,
        teacher=teacher.shape,
        teacher_layer=teacher.layer,
        checkpoint_every_steps=200,
        **changes,  # type: ignore[arg-type]
    )


def toy() -> Regime:
    """Seconds: for the tests."""
    teachers = {"weak": Teacher(shape(16, 2, 8), 0, 1024), "strong": Teacher(shape(32, 2, 16), 0, 2048, ahead=True)}
    teachers |= more_teachers(teachers["weak"], shape(16, 2, 8), 2048)
    return Regime(
        size(
            "toy",
            shape(16, 2, 8),
            teachers["weak"],
            vocab_size=300,
            context_length=32,
            num_tokens=2048,
            num_concepts=128,
        ),
        teachers,
        (0.004, 0.008, 0.016),
        rows=("ntp", "kd", "recommended"),
        seeds=(0, 1),
        shares={"strong": (50,)},
        sweep="toy",
        dictionary_tokens=2048,
        max_bytes=400_000,
    )


def nano() -> Regime:
    """0.5M parameters on 8M tokens, fifteen a parameter; ten to twenty minutes a run on one core. Carries all tables."""
    teachers = {
        "weak": Teacher(shape(64, 3), 1, 6_000_000),
        "strong": Teacher(shape(128, 4), 2, 16_000_000, ahead=True),
    }
    teachers |= more_teachers(teachers["weak"], shape(96, 3), 8_000_000)
    return Regime(
        size("nano", shape(96, 3), teachers["weak"], context_length=256, num_tokens=8_000_000),
        teachers,
        (0.002, 0.004, 0.008),
        compile=True,
        shares={"weak": (70, 55), "strong": (50, 35, 25)},
    )


def small() -> Regime:
    """1.1M parameters on 16M tokens of prose, weak teacher. Confirms the recommended row beside its closest rivals."""
    teachers = {"weak": Teacher(shape(96, 3), 1, 12_000_000)}
    return Regime(
        size("small", shape(128, 4), teachers["weak"], context_length=256, num_tokens=16_000_000),
        teachers,
        compile=True,
        corpora=("prose",),
        rows=("ntp", "ntp-wider", "alignment-wider", "recommended"),
        shares={"weak": (70,)},
    )


def base() -> Regime:
    """23M parameters on 200M tokens of prose, for a GPU: one seed, rates and weights not searched. About 110 PFLOP in all."""
    teachers = {"weak": Teacher(shape(384, 4, 64), 1, 100_000_000)}
    changes = {"vocab_size": 8192, "context_length": 512, "num_tokens": 200_000_000, "batch_size": 128}
    changes |= {"learning_rate": 0.002}
    return Regime(
        size("base", shape(512, 6, 64), teachers["weak"], num_concepts=4096, **changes),
        teachers,
        compile=True,
        corpora=("prose",),
        rows=("ntp", "recommended", "both"),
        seeds=(0,),
        sweep=None,
        dictionary_tokens=8_000_000,
    )


REGIMES = {regime.size.name: regime for regime in (toy(), nano(), small(), base())}
