"""From cells to the numbers of a row: means over seeds, paired differences and their intervals, what reaching NTP took."""

from __future__ import annotations

import itertools
import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from benchmarks.evidence.cells import Cell, stored_cells
from benchmarks.evidence.inputs import dictionary_flops
from benchmarks.evidence.tables import OWN_RATE, ROWS, SEEDS, SIZE, TOKENS, plain_of, rated, unrated
from benchmarks.evidence.variants import OTHER_RATES, VARIANTS
from cocomix.tools.compare.intervals import bootstrap_interval
from cocomix.training.sizes import SIZES

#: What a step more or less is of a run, about.
STEP = 0.001

#: Added to a result: the student's FLOPs, those of labels or targets, and of training the teacher and its dictionary.
WITH_TEACHER = "flops_with_teacher"

Results = Mapping[int, Mapping[str, Any]]


@dataclass(frozen=True)
class Row:
    """One variant of one comparison, over the seeds that were run."""

    variant: str
    results: Results
    """By seed, of whole length."""
    differences: list[float]
    """To the loss of NTP of the same shape and seed, nats a token."""

    @property
    def losses(self) -> list[float]:
        return [result["validation_loss"] for result in self.results.values()]

    @property
    def interval(self) -> tuple[float, float] | None:
        """Paired bootstrap over seeds, 95 %; None of fewer than three."""
        return bootstrap_interval(self.differences)

    def mean(self, name: str) -> float | None:
        """Of a number that all results have."""
        values = [result[name] for result in self.results.values()]
        return statistics.fmean(values) if values else None


def cost_with_teacher(row: Row, ntp: Results) -> float | None:
    """FLOPs of the student and of all that its teacher takes, NTP's = 1; the mean over seeds."""
    found = [result[WITH_TEACHER] / ntp[seed]["train_flops"] for seed, result in row.results.items() if seed in ntp]
    return statistics.fmean(found) if found else None


def _flops_with_teacher(cell: Cell, result: Mapping[str, Any]) -> float:
    variant = VARIANTS[cell.variant]
    flops = float(sum(result.get(name, 0.0) for name in ("train_flops", "teacher_flops", "teacher_train_flops")))
    if variant.needs_labels(cell.size):
        flops += dictionary_flops(cell.teacher, SIZES[cell.size], variant.num_latents)
    return flops


def results_of(corpus: str, teacher: str, variant: str, tokens: str | None = None) -> dict[int, dict[str, Any]]:
    """Stored results by seed; of the comparison's own length unless another is named."""
    found, tokens = {}, tokens or TOKENS[teacher]
    for seed in SEEDS:
        cell = Cell(corpus, teacher, SIZE, variant, tokens, seed)
        result = cell.result()
        if result is not None:
            found[seed] = result | {WITH_TEACHER: _flops_with_teacher(cell, result)}
    return found


def best_of_rates(corpus: str, teacher: str, variant: str) -> Results:
    """As `results_of`, of each seed the run with the lowest loss over all learning rates that it was run at."""
    rates = [rated(unrated(variant), rate) for rate in (OWN_RATE, *OTHER_RATES)]
    found = [results_of(corpus, teacher, name) for name in rates]
    seeds = sorted({seed for results in found for seed in results})
    return {
        seed: min((results[seed] for results in found if seed in results), key=lambda run: run["validation_loss"])
        for seed in seeds
    }


def teacher_facts(corpus: str, teacher: str) -> Mapping[str, Any] | None:
    """A result that tells the teacher's loss and its dictionary's quality; None: not run yet."""
    results = (result for variant in ROWS[teacher] for result in results_of(corpus, teacher, variant).values())
    return next((result for result in results if "teacher_loss" in result), None)


def row_of(corpus: str, teacher: str, variant: str, tokens: str | None = None, plain: str | None = None) -> Row:
    """A variant's results, and their differences to NTP's, or to those of another run that is named."""
    results = results_of(corpus, teacher, variant, tokens)
    ntp = results_of(corpus, teacher, plain or plain_of(variant, teacher), tokens)
    return Row(variant, results, differences_of(results, ntp))


def differences_of(one: Results, other: Results) -> list[float]:
    """Losses of one less those of the other, on the seeds that both have."""
    return [result["validation_loss"] - other[seed]["validation_loss"] for seed, result in one.items() if seed in other]


@dataclass(frozen=True)
class Share:
    """What reaching NTP's final loss takes on one seed, as a share of what NTP's run took."""

    value: float | None
    """None: the longest run does not reach it."""
    is_bound: bool = False
    """The shortest run reaches it already: less would do."""

    def __str__(self) -> str:
        if self.value is None:
            return "not reached"
        return f"{'under ' if self.is_bound else ''}{self.value:.0%}"

    def is_at_most(self, wanted: float) -> bool | None:
        """Whether it is, but for the rounding of runs to whole steps; None: the bound does not say."""
        if self.value is None or self.value <= wanted + STEP:
            return self.value is not None
        return None if self.is_bound else False


def listed_shares(shares: Sequence[Share]) -> str:
    """One for each seed, or one that all have."""
    texts = list(dict.fromkeys(map(str, shares)))
    return texts[0] if len(texts) == 1 else ", ".join(map(str, shares))


def shares_to_match(corpus: str, teacher: str, variant: str, axis: str) -> list[Share]:
    """For each seed what reaching NTP's final loss takes.

    Runs of several lengths, each with its whole schedule, are points of loss against amount; between two of them the loss
    is taken to be linear in the amount's logarithm.

    Args:
        corpus: of the comparison.
        teacher: of the comparison.
        variant: what is compared.
        axis: `train_tokens`, `train_flops`, `WITH_TEACHER` or `train_seconds`.
    """
    lengths = {c.tokens for c in stored_cells() if (c.corpus, c.size, c.variant) == (corpus, SIZE, variant)}
    shares = []
    for seed, ntp in results_of(corpus, teacher, plain_of(variant, teacher)).items():
        found = (results_of(corpus, teacher, variant, tokens).get(seed) for tokens in lengths)
        runs = [run for run in found if run is not None and run["train_tokens"] <= ntp["train_tokens"]]
        runs.sort(key=lambda run: run["train_tokens"])  # not by seconds: a longer run on an idle machine can take fewer
        points = [(run[axis], run["validation_loss"]) for run in runs]
        if not points:
            continue
        if points[0][1] < ntp["validation_loss"]:
            shares.append(Share(points[0][0] / ntp[axis], is_bound=True))
            continue
        needed = _amount_at(points, ntp["validation_loss"])
        shares.append(Share(None if needed is None else needed / ntp[axis]))
    return shares


def _amount_at(points: Sequence[tuple[float, float]], loss: float) -> float | None:
    """Where a falling line through the points first is at a loss."""
    for (less, higher), (more, lower) in itertools.pairwise(points):
        if lower <= loss <= higher:
            share = (higher - loss) / (higher - lower)
            return math.exp(math.log(less) + share * (math.log(more) - math.log(less)))
    return points[0][0] if len(points) == 1 and points[0][1] == loss else None
