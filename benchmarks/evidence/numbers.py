"""From stored results to numbers: paired differences, costs, what reaching NTP's loss takes."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

Result = Mapping[str, Any]
#: By seed.
Results = Mapping[int, Result]
NOT_REACHED = "not reached"


def student_cost(result: Result) -> float:
    """FLOPs of the student alone."""
    return float(result["train_flops"])


def at_hand_cost(result: Result) -> float:
    """FLOPs with a teacher and a dictionary that exist: the student's, and the teacher's for labels and targets."""
    return student_cost(result) + float(result["teacher_flops"])


def whole_cost(result: Result, num_students: int = 1) -> float:
    """FLOPs with the training of teacher and dictionary, shared by `num_students`."""
    made = float(result.get("teacher_train_flops", 0.0)) + float(result.get("dictionary_flops", 0.0))
    return at_hand_cost(result) + made / num_students


#: What a run takes, as the pages name it.
COSTS: dict[str, Callable[[Result], float]] = {
    "tokens": lambda result: float(result["train_tokens"]),
    "FLOPs": student_cost,
    "with a teacher at hand": at_hand_cost,
    "with a teacher for ten": lambda result: whole_cost(result, 10),
    "with a teacher for one": whole_cost,
}


def losses_of(results: Results) -> list[float]:
    return [result["validation_loss"] for result in results.values()]


def differences(one: Results, other: Results) -> list[float]:
    """Losses of one less those of the other, nats a token, on the seeds that both have."""
    return [run["validation_loss"] - other[seed]["validation_loss"] for seed, run in one.items() if seed in other]


def share_to_match(runs: Iterable[Result], ntp: Result, cost: Callable[[Result], float]) -> str:
    """What reaching NTP's final loss takes, as a share of what NTP's run took.

    Runs of several lengths, each with its whole schedule, are points of loss against cost; between two of them the loss is
    taken to be linear in the cost's logarithm. *Under* a share: the shortest run has reached that loss already.
    """
    points = sorted((cost(run), run["validation_loss"]) for run in runs)
    whole, loss = cost(ntp), ntp["validation_loss"]
    if not points:
        return ""
    if points[0][1] < loss:
        return f"under {points[0][0] / whole:.0%}"
    needed = _amount_at(points, loss)
    return NOT_REACHED if needed is None else f"{needed / whole:.0%}"


def _amount_at(points: Sequence[tuple[float, float]], loss: float) -> float | None:
    """Where a falling line through the points first is at a loss."""
    for (less, higher), (more, lower) in itertools.pairwise(points):
        if lower <= loss <= higher:
            share = (higher - loss) / (higher - lower) if higher > lower else 0.0
            return math.exp(math.log(less) + share * (math.log(more) - math.log(less)))
    return points[0][0] if len(points) == 1 and points[0][1] == loss else None
