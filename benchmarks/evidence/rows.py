"""From stored results to numbers: losses by seed, paired differences, what reaching NTP's loss takes."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from typing import Any

from benchmarks.evidence.cells import Cell, stored_cells
from benchmarks.evidence.inputs import dictionary_flops
from benchmarks.evidence.tables import REGIMES, SEEDS, SIZE, ntp_of
from benchmarks.evidence.variants import VARIANTS
from cocomix.training.sizes import SIZES

#: Added to a result: the student's FLOPs, those of labels or targets, and of training the teacher and its dictionary.
WITH_TEACHER = "flops_with_teacher"
NOT_REACHED = "not reached"

#: By seed.
Results = Mapping[int, Mapping[str, Any]]


def results_of(corpus: str, teacher: str, variant: str, tokens: str | None = None) -> Results:
    """Stored results; of the regime's own length unless another is named."""
    found = {}
    for seed in SEEDS:
        cell = Cell(corpus, teacher, SIZE, variant, tokens or REGIMES[teacher].tokens, seed)
        result = cell.result()
        if result is not None:
            found[seed] = result | {WITH_TEACHER: _flops_with_teacher(cell, result)}
    return found


def _flops_with_teacher(cell: Cell, result: Mapping[str, Any]) -> float:
    variant = VARIANTS[cell.variant]
    flops = float(sum(result.get(name, 0.0) for name in ("train_flops", "teacher_flops", "teacher_train_flops")))
    if variant.needs_labels(cell.size):
        flops += dictionary_flops(cell.teacher, SIZES[cell.size], variant.num_latents)
    return flops


def values_of(results: Results, name: str = "validation_loss") -> list[float]:
    """One number of every seed."""
    return [result[name] for result in results.values()]


def differences(one: Results, other: Results) -> list[float]:
    """Losses of one less those of the other, nats a token, on the seeds that both have."""
    return [run["validation_loss"] - other[seed]["validation_loss"] for seed, run in one.items() if seed in other]


def ratios(one: Results, other: Results, name: str, other_name: str) -> list[float]:
    """A number of one over a number of the other, on the seeds that both have."""
    return [result[name] / other[seed][other_name] for seed, result in one.items() if seed in other]


def shares_to_match(corpus: str, teacher: str, variant: str, axis: str) -> list[str]:
    """What reaching NTP's final loss takes on each seed, as a share of what NTP's run took.

    Runs of several lengths, each with its whole schedule, are points of loss against amount; between two of them the loss
    is taken to be linear in the amount's logarithm. *Under* a share: the shortest run has reached that loss already.

    Args:
        corpus: of the comparison.
        teacher: of the comparison.
        variant: what is compared.
        axis: `train_tokens`, `train_flops` or `WITH_TEACHER`.
    """
    lengths = {c.tokens for c in stored_cells() if (c.corpus, c.size, c.variant) == (corpus, SIZE, variant)}
    by_length = [results_of(corpus, teacher, variant, tokens) for tokens in lengths]
    shares = []
    for seed, ntp in results_of(corpus, teacher, ntp_of(variant, teacher)).items():
        runs = [runs[seed] for runs in by_length if seed in runs and runs[seed]["train_tokens"] <= ntp["train_tokens"]]
        points = sorted((run[axis], run["validation_loss"]) for run in runs)
        if points and points[0][1] < ntp["validation_loss"]:
            shares.append(f"under {points[0][0] / ntp[axis]:.0%}")
        elif points:
            needed = _amount_at(points, ntp["validation_loss"])
            shares.append(NOT_REACHED if needed is None else f"{needed / ntp[axis]:.0%}")
    return shares


def _amount_at(points: Sequence[tuple[float, float]], loss: float) -> float | None:
    """Where a falling line through the points first is at a loss."""
    for (less, higher), (more, lower) in itertools.pairwise(points):
        if lower <= loss <= higher:
            share = (higher - loss) / (higher - lower)
            return math.exp(math.log(less) + share * (math.log(more) - math.log(less)))
    return points[0][0] if len(points) == 1 and points[0][1] == loss else None
