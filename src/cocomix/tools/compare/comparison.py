"""All numbers of a comparison, computed from the curves of the runs.

Runs are compared in pairs: with the other group's run of the same seed if there is one (both began with the same weights and
the same order of data), else with the mean of the group.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from cocomix.base.errors import CocomixError
from cocomix.tools.compare.curves import CURVE_AXES, loss_at, units_to_match
from cocomix.tools.compare.intervals import LEVEL, MIN_PAIRS, bootstrap_interval, mean_and_spread
from cocomix.tools.compare.runs import Group, TrainingRun

SCHEDULE_NOTE = (
    "Each curve belongs to one run, whose learning rate has not yet decayed where it reaches another run’s final loss: a run "
    "planned to end there would have a lower loss, so these amounts err on the high side."
)
STUDENT_NOTE = "Tokens, FLOPs and seconds are the student’s own; the cost of a teacher is in a column of its own."
LENGTHS_NOTE = "The runs were planned for different numbers of tokens: their final losses are not at equal tokens."
SEEDS_NOTE = (
    "Intervals are paired bootstraps over the differences of the seeds. With three seeds they are coarse and too short, so "
    f"look at the pairs themselves; fewer than {MIN_PAIRS} pairs have no interval."
)


def compare_groups(groups: Sequence[Group], baseline: str | None = None) -> dict[str, Any]:
    """Compare groups of runs with a baseline and with each other.

    Args:
        groups: as `read_groups` returns them.
        baseline: name of a group, or path of one of its runs; None: the first group.

    Returns:
        JSON: `baseline`, `groups` by name and `notes`; see `docs/comparing.md`.
    """
    reference = groups[0] if baseline is None else _named(groups, baseline)
    if not any(run.curve for group in groups for run in group.runs):
        raise CocomixError("no run has a validation loss yet; wait for the first evaluation")
    has_seeds = any(len(group.runs) > 1 for group in groups)
    has_lengths = len({run.settings["num_tokens"] for group in groups for run in group.runs}) > 1
    return {
        "baseline": reference.name,
        "groups": {group.name: _facts(group, reference, groups) for group in groups},
        "notes": [
            SCHEDULE_NOTE,
            STUDENT_NOTE,
            *([LENGTHS_NOTE] if has_lengths else []),
            *([SEEDS_NOTE] if has_seeds else []),
        ],
    }


def _named(groups: Sequence[Group], name: str) -> Group:
    for group in groups:
        if name == group.name:
            return group
    place = Path(name).resolve()
    for group in groups:
        if any(run.path.resolve() == place for run in group.runs):
            return group
    raise CocomixError(f"--baseline is {name!r}; it must be one of {', '.join(group.name for group in groups)}")


def _facts(group: Group, reference: Group, groups: Sequence[Group]) -> dict[str, Any]:
    losses = [run.loss for run in group.runs if run.loss is not None]
    facts: dict[str, Any] = {
        "runs": [_run_facts(run) for run in group.runs],
        "is_finished": all(run.is_finished for run in group.runs),
        "validation_loss": mean_and_spread(losses),
        "to_reach": {other.name: _to_reach(group, other) for other in groups if other is not group},
    }
    if group is not reference:
        facts["difference"] = _difference(group, reference)
    return facts


def _run_facts(run: TrainingRun) -> dict[str, Any]:
    return {
        "path": str(run.path),
        "seed": run.seed,
        "is_finished": run.is_finished,
        "planned_tokens": run.settings["num_tokens"],
        **run.consumed,
        "teacher_flops": run.teacher_flops,
        "num_parameters": run.num_parameters,
        "validation_loss": run.loss,
        "curve": run.curve,
    }


def _difference(group: Group, reference: Group) -> dict[str, Any]:
    """The group's loss less the reference's, for each pair of equal seeds and over all pairs."""
    partners = {run.seed: run for run in reference.runs}
    all_pairs = {run.seed: _pair(run, partners[run.seed]) for run in group.runs if run.seed in partners}
    pairs = {seed: pair for seed, pair in all_pairs.items() if pair is not None}
    values = [pair["difference"] for pair in pairs.values()]
    return {"pairs": pairs, **mean_and_spread(values), "interval": bootstrap_interval(values), "level": LEVEL}


def _pair(run: TrainingRun, partner: TrainingRun) -> dict[str, float] | None:
    """The difference of the final losses; if a run is unfinished, of the losses at the tokens that both have seen."""
    if not run.curve or not partner.curve:
        return None
    tokens = min(run.curve[-1]["train_tokens"], partner.curve[-1]["train_tokens"])
    loss, other = run.loss, partner.loss
    if not (run.is_finished and partner.is_finished):
        loss, other = (_loss_after(each, tokens) for each in (run, partner))
    if loss is None or other is None:
        return None
    return {"difference": loss - other, "train_tokens": tokens}


def _loss_after(run: TrainingRun, tokens: float | int) -> float | None:
    last = run.curve[-1]
    return last["validation_loss"] if last["train_tokens"] == tokens else loss_at(run.curve, "train_tokens", tokens)


def _to_reach(group: Group, other: Group) -> dict[str, Any]:
    """What the group's runs needed to reach the final loss of the other's, also as a share of the other's whole run."""
    partners = {run.seed: run for run in other.runs}
    reached: dict[str, Any] = {}
    for axis in CURVE_AXES:
        runs = []
        for run in group.runs:
            targets = [partners[run.seed]] if run.seed in partners else other.runs
            runs.append({"seed": run.seed, **_reached(run, [target for target in targets if target.curve], axis)})
        reached[axis] = {"runs": runs, "amount": mean_of(runs, "amount"), "share": mean_of(runs, "share")}
    return reached


def _reached(run: TrainingRun, targets: Sequence[TrainingRun], axis: str) -> dict[str, float | None]:
    if not run.curve or not targets:
        return {"amount": None, "share": None}
    loss = sum(target.curve[-1]["validation_loss"] for target in targets) / len(targets)
    whole = sum(target.curve[-1][axis] for target in targets) / len(targets)
    amount = units_to_match(run.curve, [{"validation_loss": loss}], axis)
    return {"amount": amount, "share": None if amount is None or not whole else amount / whole}


def mean_of(runs: Sequence[Mapping[str, Any]], name: str) -> float | None:
    """Mean of a number over some runs, such as `train_flops`; None if a run does not have it."""
    values = [run[name] for run in runs]
    return None if any(value is None for value in values) else sum(values) / len(values)
