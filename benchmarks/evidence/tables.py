"""Which cells each table has."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence

from benchmarks.evidence.cells import Cell
from benchmarks.evidence.corpora import CORPORA
from benchmarks.evidence.inputs import TEACHERS
from benchmarks.evidence.variants import OTHER_RATES, STEADY_RATE
from cocomix.training.sizes import SIZES

SEEDS = (0, 1, 2)
SIZE = "small"
#: Of a student, by its teacher: weaker than the students at their end, or trained on four times their tokens.
TOKENS = {"weak": "1M", "strong": "500K"}
OWN_RATE = SIZES[SIZE].learning_rate


def rated(variant: str, rate: float) -> str:
    """Name of a variant at a learning rate; the size's own has no suffix."""
    return variant if rate == OWN_RATE else f"{variant}-rate-{rate:g}"


def unrated(variant: str) -> str:
    """Name of a variant without its learning rate."""
    return re.sub(r"-rate-[\d.]+$", "", variant)


#: Learning rates, looked at with one seed, beside the size's own.
RATES: dict[str, Sequence[float]] = {
    "ntp": OTHER_RATES,
    "ntp-equal-parameters": (STEADY_RATE,),
    "ntp-equal-flops": (STEADY_RATE,),
    "pause": (STEADY_RATE,),
    "published": (STEADY_RATE,),
    "recommended": (STEADY_RATE, 0.006),
}
#: NTP in a teacher's comparison: at the rate at which no seed stays on the plateau.
PLAIN = {"weak": "ntp", "strong": rated("ntp", STEADY_RATE)}
#: Others of which a seed or all did better at that rate.
EQUAL_PARAMETERS, EQUAL_FLOPS, PUBLISHED = (
    rated(name, STEADY_RATE) for name in ("ntp-equal-parameters", "ntp-equal-flops", "published")
)
#: Distillation as it was best with each teacher, of those that were tried on the first seed.
KD = {"weak": "kd-1-cosine", "strong": "kd-10"}
#: Concepts and distillation of that kind.
WITH_KD = {"weak": "recommended-kd", "strong": "recommended-kd-10"}
#: The rows of a teacher's main table, in order. What has no use for a teacher stands in the weak one's alone.
ROWS = {
    teacher: (
        PLAIN[teacher],
        *((EQUAL_PARAMETERS, EQUAL_FLOPS, "pause", "pause-residual") if teacher == "weak" else ()),
        *dict.fromkeys((KD["weak"], KD[teacher])),
        PUBLISHED,
        "recommended",
        "recommended-loss-only",
        *dict.fromkeys((WITH_KD["weak"], WITH_KD[teacher])),
    )
    for teacher in TEACHERS
}
#: NTP with more tokens, one seed: less than what the recommended variant takes with labels, dictionary and weak teacher.
LONGER = ("1.6M",)
LONGER_COMPARISON = ("standard_library", "weak")
#: Whole runs with fewer tokens, with the weak teacher, to see how many reach NTP's final loss.
SHORTER: dict[str, dict[str, Sequence[str]]] = {
    "standard_library": {KD["weak"]: ("700K",), "recommended": ("700K",), WITH_KD["weak"]: ("700K",)},
    "english": {KD["weak"]: ("700K",), "recommended": ("500K", "700K"), WITH_KD["weak"]: ("700K",)},
}
COMPARISONS = tuple((corpus, teacher) for corpus in CORPORA for teacher in TEACHERS)

#: Rows of the ablations, by what they ask, all on one corpus and teacher and with one number of tokens.
ABLATIONS: dict[str, Sequence[str]] = {
    "Components": ("mix-only", "loss-only-lambda-1", "add-lambda-1"),
    "Mixing": ("interleave-lambda-1", "interleave-residual-lambda-1", "add-lambda-1"),
    "Weight of the labels, and its schedule": (
        "add",
        "add-lambda-0.3",
        "add-lambda-1",
        "add-lambda-3",
        "recommended",
    ),
    "Which labels": (
        "add-lambda-1",
        "add-attribution-lambda-1",
        "add-attribution-lowers-lambda-1",
        "add-attribution-magnitude-lambda-1",
        "add-attribution-next-lambda-1",
        "add-random-lambda-1",
        "add-shuffled-lambda-1",
        "add-frequency-lambda-1",
    ),
    "Labels a token (K_attr)": ("add-1-label-lambda-1", "add-lambda-1", "add-16-labels-lambda-1"),
    "Concepts in the mixture (K_mix)": ("add-mix-8-lambda-1", "add-lambda-1", "add-mix-128-lambda-1"),
    "Insertion before block": ("add-lambda-1", "add-insert-2-lambda-1", "add-insert-3-lambda-1"),
    "Latents of the dictionary": ("add-256-latents-lambda-1", "add-lambda-1", "add-4096-latents-lambda-1"),
    "Distillation, and concepts with it": ("kd-0.3", "kd-1", "kd-3", "add-kd-1-lambda-1"),
}
ABLATION_COMPARISON = ("standard_library", "weak")
ABLATION_TOKENS = "500K"
#: Those that were run at the size's own rate too, with one seed.
OTHER_RATE_ABLATIONS = (
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
#: Rows that ask whether both parts and the dictionary are needed, with every seed; the others have one.
ON_ALL_SEEDS = (
    "ntp",
    "mix-only",
    "loss-only-lambda-1",
    "add-lambda-1",
    "add-random-lambda-1",
)
#: A dictionary that was trained, and one of random directions, at the main table's length and rate.
CONTROLS = ("recommended-random", "recommended")
CONTROL_COMPARISON = ("standard_library", "strong")

SCALING_COMPARISON = ABLATION_COMPARISON
#: Smallest first; the last is the size's own.
SCALING_SHAPES = ("64x2", "96x3", "128x4")
SCALING_TOKENS = ("250K", "500K", "1M")
#: A point is the better of its runs.
SCALING_RATES = (OWN_RATE, STEADY_RATE)

#: Schedules of the two losses that a teacher gives, at the main table's length.
SCHEDULES = ("add-lambda-1", "recommended", "kd-1", "kd-1-cosine", "kd-3-cosine")
#: What the strong teacher gives, which is not overtaken: distillation and concepts with weights that stay.
STRONG = ("kd-1-cosine", "kd-1", rated("kd-1", STEADY_RATE), "kd-3", "kd-10", "kd-30")
STRONG += ("recommended", "add-lambda-1", "add-lambda-3", "recommended-kd", "recommended-kd-3", "recommended-kd-10")
#: Those that were run on prose as well.
STRONG_ON_PROSE = ("kd-1-cosine", "kd-1", "kd-3", "kd-10", "recommended", "recommended-kd", "recommended-kd-10")
#: The largest shape that is run, of whole length.
LARGEST = tuple(rated(f"{name}-256x6", STEADY_RATE) for name in ("ntp", "recommended"))


def cells_of(
    corpus: str, teacher: str, variants: Iterable[str], seeds: Iterable[int] = SEEDS, tokens: str | None = None
) -> list[Cell]:
    """Of whole length unless another is named, seed by seed, so that a table left half-way has all its rows first."""
    variants, tokens = list(variants), tokens or TOKENS[teacher]
    return [Cell(corpus, teacher, SIZE, variant, tokens, seed) for seed in seeds for variant in variants]


def main(corpus: str, teacher: str) -> list[Cell]:
    """Of one corpus and teacher."""
    others: list[Cell] = []
    if teacher == "weak":
        others = [
            Cell(corpus, teacher, SIZE, variant, tokens, seed)
            for seed in SEEDS
            for variant, lengths in SHORTER[corpus].items()
            for tokens in lengths
        ]
    if (corpus, teacher) == LONGER_COMPARISON:
        others += [Cell(corpus, teacher, SIZE, PLAIN[teacher], tokens, SEEDS[0]) for tokens in LONGER]
    return cells_of(corpus, teacher, ROWS[teacher]) + others


def ablations() -> list[Cell]:
    names = dict.fromkeys(("ntp", *(name for rows in ABLATIONS.values() for name in rows)))
    return [
        Cell(*ABLATION_COMPARISON, SIZE, rated(name, STEADY_RATE), ABLATION_TOKENS, seed)
        for seed in SEEDS
        for name in names
        if seed == SEEDS[0] or name in ON_ALL_SEEDS
    ]


def controls() -> list[Cell]:
    return cells_of(*CONTROL_COMPARISON, CONTROLS)


def largest() -> list[Cell]:
    """A pair of wider and deeper students, one seed."""
    return cells_of(*SCALING_COMPARISON, LARGEST, seeds=(0,))


def scaled(variant: str, shape: str) -> str:
    """Name of a variant at a shape, WIDTHxBLOCKS; the size's own has no suffix."""
    return variant if shape == SCALING_SHAPES[-1] else f"{variant}-{shape}"


def plain_of(variant: str, teacher: str) -> str:
    """The NTP that a variant is compared with: of its shape and rate, if its name has a shape."""
    shape = re.search(r"-\d+x\d+(-rate-[\d.]+)?$", variant)
    return f"ntp{shape[0]}" if shape else PLAIN[teacher]


def scaling() -> list[Cell]:
    """Three shapes, three numbers of tokens, two learning rates, one seed."""
    return [
        Cell(*SCALING_COMPARISON, SIZE, rated(scaled(variant, shape), rate), tokens, 0)
        for rate in SCALING_RATES
        for tokens in SCALING_TOKENS
        for shape in SCALING_SHAPES
        for variant in ("ntp", "recommended")
    ]


def schedules() -> list[Cell]:
    return cells_of(*ABLATION_COMPARISON, SCHEDULES, seeds=(0,))


def strong() -> list[Cell]:
    by_corpus = zip(CORPORA, (STRONG, STRONG_ON_PROSE), strict=True)
    return [cell for corpus, names in by_corpus for cell in cells_of(corpus, "strong", names, seeds=(0,))]


def rates() -> list[Cell]:
    names = [rated(variant, rate) for variant, rates in RATES.items() for rate in rates]
    return [
        *cells_of(*ABLATION_COMPARISON, [*names, *RATES], seeds=(0,)),
        *cells_of(*ABLATION_COMPARISON, ["ntp-equal-parameters"]),
        *cells_of(*ABLATION_COMPARISON, OTHER_RATE_ABLATIONS, (0,), ABLATION_TOKENS),
        *cells_of(*ABLATION_COMPARISON, ["ntp"], tokens=ABLATION_TOKENS),
    ]


TABLES: dict[str, Callable[[], list[Cell]]] = {
    "main": lambda: [cell for comparison in COMPARISONS for cell in main(*comparison)],
    "ablations": ablations,
    "controls": controls,
    "schedules": schedules,
    "strong": strong,
    "rates": rates,
    "scaling": scaling,
    "largest": largest,
}
