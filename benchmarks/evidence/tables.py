"""Which cells each table has."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

from benchmarks.evidence.cells import Cell
from benchmarks.evidence.corpora import CORPORA
from benchmarks.evidence.inputs import TEACHERS

SEEDS = (0, 1, 2)
SIZE = "small"
TOKENS = "2M"
#: Whole runs of fewer tokens, to see how many reach NTP's final loss.
SHORTER = ("1M", "1.4M")
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
ABLATION_COMPARISON = ("standard_library", "weak")


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
    names = ("ntp", "add-lambda-1", "add-16-labels", "add", "add-lambda-3", "kd-1")
    return [Cell(*ABLATION_COMPARISON, SIZE, name, "1M", 0) for name in names]


TABLES: dict[str, Callable[[], list[Cell]]] = {
    "main": lambda: [cell for comparison in COMPARISONS for cell in main(*comparison)],
    "ablations": ablations,
    "levers": levers,
}
