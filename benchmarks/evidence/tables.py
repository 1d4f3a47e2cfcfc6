"""Which cells each table has."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

from benchmarks.evidence.cells import Cell
from benchmarks.evidence.corpora import CORPORA
from benchmarks.evidence.inputs import TEACHERS

SEEDS = (0, 1, 2)
SIZE = "small"
TOKENS = "1M"
#: Whole runs of fewer tokens, to see how many reach NTP's final loss.
SHORTER = ("500K", "700K")
DISTILLATION_WEIGHTS = (0.1, 0.3, 1.0, 3.0)

#: The main table's rows, in order.
MAIN = (
    "ntp",
    "ntp-equal-parameters",
    "ntp-equal-flops",
    "pause",
    *(f"kd-{weight:g}" for weight in DISTILLATION_WEIGHTS),
    "published",
    "recommended",
    "recommended-kd",
)
#: Those that also run with fewer tokens.
WITH_SHORTER_RUNS = ("published", "recommended", "recommended-kd")
COMPARISONS = tuple((corpus, teacher) for corpus in CORPORA for teacher in TEACHERS)

#: Rows of the ablations, by what they ask, all on one corpus and teacher.
ABLATIONS: dict[str, Sequence[str]] = {
    "How much the labels weigh": ("mix-only", "add", "add-lambda-0.3", "add-lambda-1", "add-lambda-3"),
    "Labels a token": ("add-1-label", "add", "add-16-labels"),
}
#: NTP's learning rate, looked at with one seed before it was everyone's.
RATES = ("ntp-rate-0.001", "ntp-rate-0.002", "ntp", "ntp-rate-0.006")
#: Changes of the method, looked at with one seed and half the tokens before any of them is worth more.
LEVERS = (
    "ntp",
    "add-lambda-1",
    "kd-1",
    "add",
    "add-lambda-3",
    "add-16-labels-lambda-1",
    "add-insert-2-lambda-1",
    "add-kd-1-lambda-1",
    "loss-only-lambda-1",
)
ABLATION_COMPARISON = ("standard_library", "weak")

SCALING_COMPARISON = ABLATION_COMPARISON
#: Smallest first; the last is the size's own.
SCALING_SHAPES = ("64x2", "96x3", "128x4")
SCALING_TOKENS = ("250K", "500K", "1M")


def cells_of(corpus: str, teacher: str, variants: Iterable[str], seeds: Iterable[int] = SEEDS) -> list[Cell]:
    """Of whole length, seed by seed, so that a table that was left half-way has all its rows first."""
    variants = list(variants)
    return [Cell(corpus, teacher, SIZE, variant, TOKENS, seed) for seed in seeds for variant in variants]


def main(corpus: str, teacher: str) -> list[Cell]:
    """Of one corpus and teacher."""
    shorter = [
        Cell(corpus, teacher, SIZE, variant, tokens, seed)
        for seed in SEEDS
        for variant in WITH_SHORTER_RUNS
        for tokens in SHORTER
    ]
    # The weight of distillation is swept once, on the first seed.
    kept = [cell for cell in cells_of(corpus, teacher, MAIN) if cell.seed == 0 or cell.variant not in _swept()]
    return kept + shorter


def _swept() -> set[str]:
    return {f"kd-{weight:g}" for weight in DISTILLATION_WEIGHTS} - {"kd-0.1", "kd-1"}


def ablations() -> list[Cell]:
    return cells_of(*ABLATION_COMPARISON, dict.fromkeys(name for rows in ABLATIONS.values() for name in rows))


def levers() -> list[Cell]:
    """One seed at half the tokens: which changes of the method are worth more runs."""
    return [Cell(*ABLATION_COMPARISON, SIZE, name, SHORTER[0], 0) for name in LEVERS]


def scaled(variant: str, shape: str) -> str:
    """Name of a variant at a shape, WIDTHxBLOCKS; the size's own has no suffix."""
    return variant if shape == SCALING_SHAPES[-1] else f"{variant}-{shape}"


def scaling() -> list[Cell]:
    """Three shapes, three numbers of tokens, one seed."""
    return [
        Cell(*SCALING_COMPARISON, SIZE, scaled(variant, shape), tokens, 0)
        for tokens in SCALING_TOKENS
        for shape in SCALING_SHAPES
        for variant in ("ntp", "recommended")
    ]


def rates() -> list[Cell]:
    return [Cell(*ABLATION_COMPARISON, SIZE, name, TOKENS, 0) for name in RATES]


TABLES: dict[str, Callable[[], list[Cell]]] = {
    "main": lambda: [cell for comparison in COMPARISONS for cell in main(*comparison)],
    "ablations": ablations,
    "levers": levers,
    "rates": rates,
    "scaling": scaling,
}
