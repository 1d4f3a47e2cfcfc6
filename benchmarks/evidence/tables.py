"""What is compared, and which cells each table needs."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

from benchmarks.evidence.cells import Cell
from benchmarks.evidence.corpora import CORPORA
from benchmarks.evidence.variants import OTHER_RATES, STEADY_RATE
from cocomix.training.sizes import SIZES

SEEDS = (0, 1, 2)
SIZE = "small"
OWN_RATE = SIZES[SIZE].learning_rate


def rated(variant: str, rate: float = STEADY_RATE) -> str:
    """Name of a variant at a learning rate; the size's own has no suffix."""
    return variant if rate == OWN_RATE else f"{variant}-rate-{rate:g}"


@dataclass(frozen=True)
class Regime:
    """How the students of one teacher are compared.

    Args:
        tokens: of a whole run.
        parts: the variant that plays each part: its learning rate and weights are those that suit this teacher.
        others: more variants of the main table.
    """

    tokens: str
    parts: Mapping[str, str]
    others: tuple[str, ...] = ()

    @property
    def ntp(self) -> str:
        return self.parts["NTP"]

    @property
    def variants(self) -> tuple[str, ...]:
        return (*self.parts.values(), *self.others)


#: Parts, as the pages name them.
EQUAL_PARAMETERS, EQUAL_FLOPS = "NTP with equal active parameters", "NTP with the FLOPs of published CoCoMix"
PAUSE, PAUSE_RESIDUAL = "pause vectors", "pause vectors with a residual start"
DISTILLED, BOTH = "distillation", "recommended with distillation"
PUBLISHED, RECOMMENDED, PREDICTED_ONLY = "CoCoMix as published", "recommended", "recommended without mixing"
_CONCEPTS = {
    PUBLISHED: rated("published"),
    RECOMMENDED: "recommended",
    PREDICTED_ONLY: "recommended-loss-only",
}

#: By teacher. What has no use for a teacher stands in the weak one's alone.
REGIMES = {
    "weak": Regime(
        "1M",
        {
            "NTP": "ntp",
            EQUAL_PARAMETERS: rated("ntp-equal-parameters"),
            EQUAL_FLOPS: rated("ntp-equal-flops"),
            PAUSE: "pause",
            PAUSE_RESIDUAL: "pause-residual",
            DISTILLED: "kd-1-cosine",
            **_CONCEPTS,
            BOTH: "recommended-kd",
        },
    ),
    "strong": Regime(
        "500K",
        {"NTP": rated("ntp"), DISTILLED: "kd-10", **_CONCEPTS, BOTH: "recommended-kd-10"},
        others=("kd-1-cosine", "recommended-kd"),
    ),
}
COMPARISONS = tuple((corpus, teacher) for corpus in CORPORA for teacher in REGIMES)

#: NTP with more tokens, one seed: fewer FLOPs than the recommended variant's with labels, dictionary and weak teacher.
LONGER = "1.6M"
#: Whole runs with fewer tokens, with the weak teacher, to see how many reach NTP's final loss.
SHORTER: dict[str, dict[str, Sequence[str]]] = {
    "standard_library": {"kd-1-cosine": ("700K",), "recommended": ("700K",), "recommended-kd": ("700K",)},
    "english": {"kd-1-cosine": ("700K",), "recommended": ("500K", "700K"), "recommended-kd": ("700K",)},
}

#: Where everything but the main table was measured, unless it says otherwise.
BASE = ("standard_library", "weak")
ABLATION_TOKENS = "500K"
#: What each row changes of `add-lambda-1`; all have the steady rate.
ABLATIONS: dict[str, Sequence[str]] = {
    "components": ("mix-only", "loss-only-lambda-1"),
    "mixing": ("interleave-lambda-1", "interleave-residual-lambda-1"),
    "weight of the concept loss": ("add", "add-lambda-0.3", "add-lambda-3", "recommended"),
    "which labels": (
        "add-attribution-lambda-1",
        "add-attribution-lowers-lambda-1",
        "add-attribution-magnitude-lambda-1",
        "add-attribution-next-lambda-1",
        "add-random-lambda-1",
        "add-shuffled-lambda-1",
        "add-frequency-lambda-1",
    ),
    "labels a token": ("add-1-label-lambda-1", "add-16-labels-lambda-1"),
    "concepts in the mixture": ("add-mix-8-lambda-1", "add-mix-128-lambda-1"),
    "insertion": ("add-insert-2-lambda-1", "add-insert-3-lambda-1"),
    "latents of the dictionary": ("add-256-latents-lambda-1", "add-4096-latents-lambda-1"),
    "distillation": ("kd-0.3", "kd-1", "kd-3", "add-kd-1-lambda-1"),
}
ABLATION_BASE = "add-lambda-1"
#: Rows that ask whether both parts and the dictionary are needed, with every seed; the others have one.
ON_ALL_SEEDS = ("ntp", "mix-only", "loss-only-lambda-1", ABLATION_BASE, "add-random-lambda-1")
#: Those that were run at the size's own rate too, with one seed.
AT_OWN_RATE = (
    "add",
    "add-lambda-1",
    "add-lambda-3",
    "add-16-labels-lambda-1",
    "add-insert-2-lambda-1",
    "loss-only-lambda-1",
    "kd-1",
    "add-kd-1-lambda-1",
    "recommended",
)

#: Learning rates beside the size's own, one seed.
RATES: dict[str, Sequence[float]] = {
    "ntp": OTHER_RATES,
    "ntp-equal-parameters": (STEADY_RATE,),
    "ntp-equal-flops": (STEADY_RATE,),
    "pause": (STEADY_RATE,),
    "published": (STEADY_RATE,),
    "recommended": (STEADY_RATE, 0.006),
}
#: Weights of the two losses that a teacher gives, constant or falling to 0, at the main table's length; one seed.
SCHEDULES = ("add-lambda-1", "recommended", "kd-1", "kd-1-cosine", "kd-3-cosine")
#: The same with the strong teacher, on the standard library and on prose.
STRONG = {
    "standard_library": (
        *("kd-1-cosine", "kd-1", rated("kd-1"), "kd-3", "kd-10", "kd-30", "recommended", "add-lambda-1"),
        *("add-lambda-3", "recommended-kd", "recommended-kd-3", "recommended-kd-10"),
    ),
    "english": ("kd-1-cosine", "kd-1", "kd-3", "kd-10", "recommended", "recommended-kd", "recommended-kd-10"),
}
#: A trained dictionary and one of random directions, with the strong teacher.
CONTROLS = ("recommended-random", "recommended")
CONTROL_COMPARISON = ("standard_library", "strong")

#: Smallest first; the last is the size's own.
SCALING_SHAPES = ("64x2", "96x3", "128x4")
SCALING_TOKENS = ("250K", "500K", "1M")
#: A point is the better of its runs.
SCALING_RATES = (OWN_RATE, STEADY_RATE)
#: The largest shape that is run, of whole length, one seed.
LARGEST = tuple(rated(f"{name}-256x6") for name in ("ntp", "recommended"))


def scaled(variant: str, shape: str) -> str:
    """Name of a variant at a shape, WIDTHxBLOCKS; the size's own has no suffix."""
    return variant if shape == SCALING_SHAPES[-1] else f"{variant}-{shape}"


def ntp_of(variant: str, teacher: str) -> str:
    """The NTP that a variant is compared with: of its shape and rate, if its name has a shape."""
    shape = re.search(r"-\d+x\d+(-rate-[\d.]+)?$", variant)
    return f"ntp{shape[0]}" if shape else REGIMES[teacher].ntp


def cells_of(
    corpus: str, teacher: str, variants: Iterable[str], seeds: Iterable[int] = SEEDS, tokens: str | None = None
) -> list[Cell]:
    """Of whole length unless another is named, seed by seed, so that a table left half-way has all its rows first."""
    variants, tokens = list(variants), tokens or REGIMES[teacher].tokens
    return [Cell(corpus, teacher, SIZE, variant, tokens, seed) for seed in seeds for variant in variants]


def main() -> list[Cell]:
    cells = [cell for corpus, teacher in COMPARISONS for cell in cells_of(corpus, teacher, REGIMES[teacher].variants)]
    for corpus, lengths in SHORTER.items():
        for variant, some in lengths.items():
            cells += [cell for tokens in some for cell in cells_of(corpus, "weak", [variant], tokens=tokens)]
    return cells + cells_of(*BASE, ["ntp"], SEEDS[:1], LONGER)


def ablations() -> list[Cell]:
    names = ("ntp", ABLATION_BASE, *(name for rows in ABLATIONS.values() for name in rows))
    return [
        cell
        for name in names
        for cell in cells_of(*BASE, [rated(name)], SEEDS if name in ON_ALL_SEEDS else SEEDS[:1], ABLATION_TOKENS)
    ]


def rates() -> list[Cell]:
    names = [rated(variant, rate) for variant, rates in RATES.items() for rate in rates]
    return [
        *cells_of(*BASE, [*names, *RATES], SEEDS[:1]),
        *cells_of(*BASE, ["ntp-equal-parameters"]),
        *cells_of(*BASE, AT_OWN_RATE, SEEDS[:1], ABLATION_TOKENS),
        *cells_of(*BASE, ["ntp"], tokens=ABLATION_TOKENS),
    ]


def scaling() -> list[Cell]:
    """Three shapes, three numbers of tokens, two learning rates, one seed."""
    return [
        Cell(*BASE, SIZE, rated(scaled(variant, shape), rate), tokens, SEEDS[0])
        for rate in SCALING_RATES
        for tokens in SCALING_TOKENS
        for shape in SCALING_SHAPES
        for variant in ("ntp", "recommended")
    ]


TABLES: dict[str, Callable[[], list[Cell]]] = {
    "main": main,
    "ablations": ablations,
    "controls": lambda: cells_of(*CONTROL_COMPARISON, CONTROLS),
    "schedules": lambda: cells_of(*BASE, SCHEDULES, SEEDS[:1]),
    "strong": lambda: [cell for corpus, names in STRONG.items() for cell in cells_of(corpus, "strong", names, (0,))],
    "rates": rates,
    "scaling": scaling,
    "largest": lambda: cells_of(*BASE, LARGEST, SEEDS[:1]),
}
