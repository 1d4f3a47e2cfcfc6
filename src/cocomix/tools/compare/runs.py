"""The runs of a comparison, finished or not, grouped if they differ only in their seed."""

from __future__ import annotations

import itertools
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cocomix.base import artifacts
from cocomix.base.errors import CocomixError
from cocomix.base.kinds import METRICS_NAME, TRAINING_RUN, named_inside, read_metrics
from cocomix.tools.compare.curves import CURVE_AXES, validation_curve

#: The end of a folder's name that tells seeds apart.
_SEED_SUFFIX = re.compile(r"[-_.]?(seed|s)?[-_.]?\d+$")

#: Settings of a run that a comparison needs.
_NEEDED_SETTINGS = ("seed", "num_tokens", "max_validation_windows", "inputs")


@dataclass(frozen=True)
class TrainingRun:
    """One training run."""

    path: Path
    """Its folder."""
    settings: dict[str, Any]
    """The settings that it was started with."""
    is_finished: bool
    curve: list[dict[str, float | int]]
    """Its validation losses so far."""
    consumed: dict[str, float | int]
    """Tokens, FLOPs and seconds so far, by the names of the curve's axes."""
    num_parameters: int | None
    """None for an unfinished run."""
    teacher_flops: float | None
    """Additional cost of the teacher; None for an unfinished run."""

    @property
    def seed(self) -> int:
        return int(self.settings["seed"])

    @property
    def loss(self) -> float | None:
        """The last validation loss; None if there is none yet."""
        return self.curve[-1]["validation_loss"] if self.curve else None


@dataclass(frozen=True)
class Group:
    """Runs that differ in their seeds."""

    name: str
    runs: tuple[TrainingRun, ...]
    """In the order of their seeds."""


def read_run(path: Path) -> TrainingRun:
    """Read a training run's settings and metrics.

    Raises:
        CocomixError: the folder is not a training run, or its metrics are damaged.
    """
    is_begun = (path / artifacts.SETTINGS_NAME).exists()
    header = artifacts.read_header(path) if is_begun else {}
    if header.get("kind") != TRAINING_RUN:
        content = f"a {header['kind']}" if is_begun else "nothing made by cocomix"
        inside = named_inside(path, artifacts.SETTINGS_NAME, TRAINING_RUN)
        raise CocomixError(
            f"{path} is not a training run (it holds {content}); give folders made by `cocomix train`{inside}"
        )
    settings = header["settings"]
    is_finished = (path / artifacts.MANIFEST_NAME).exists()
    facts = artifacts.read(path, TRAINING_RUN, [METRICS_NAME]).facts if is_finished else {}
    for name in _NEEDED_SETTINGS:
        if name not in settings:
            raise CocomixError(f"{path / artifacts.SETTINGS_NAME} has no {name}; train that run again")
    lines = read_metrics(path) if (path / METRICS_NAME).exists() else []
    last = lines[-1] if lines else {}
    return TrainingRun(
        path=path,
        settings=settings,
        is_finished=is_finished,
        curve=validation_curve(lines),
        consumed={axis: last.get(axis, 0) for axis in CURVE_AXES},
        num_parameters=facts.get("num_parameters"),
        teacher_flops=facts.get("teacher_flops"),
    )


def read_groups(run_specs: Sequence[str]) -> list[Group]:
    """Read training runs and group those that differ only in their seed.

    Args:
        run_specs: folders of runs, or named groups of them as `name=RUN,RUN`.

    Raises:
        CocomixError: a folder is not a run, two runs of a group have the same seed, or two runs can't be compared.
    """
    chosen: list[Group] = []
    automatic: dict[str, list[TrainingRun]] = {}
    for spec in run_specs:
        name, is_group, paths = spec.partition("=")
        if is_group and not Path(spec).exists():
            runs = [read_run(Path(path)) for path in paths.split(",") if path]
            if not name or not runs:
                raise CocomixError(f"{spec!r} is not a group; write name=RUN,RUN")
            chosen.append(_group(name, runs))
            automatic[f"={name}"] = []  # keeps the order of the groups
        else:
            run = read_run(Path(spec))
            automatic.setdefault(_settings_without_seed(run), []).append(run)
    by_name = {group.name: group for group in chosen}
    if len(by_name) < len(chosen):
        raise CocomixError("two groups have the same name; give each its own")
    names = dict(zip((key for key, runs in automatic.items() if runs), _names(automatic, by_name), strict=True))
    groups = [by_name[key[1:]] if not runs else _group(names[key], runs) for key, runs in automatic.items()]
    _check_comparable([run for group in groups for run in group.runs])
    return groups


def _settings_without_seed(run: TrainingRun) -> str:
    return artifacts.fingerprint_of_json({name: value for name, value in run.settings.items() if name != "seed"})


def _group(name: str, runs: Sequence[TrainingRun]) -> Group:
    runs = sorted(runs, key=lambda run: run.seed)
    for first, second in itertools.pairwise(runs):
        if first.seed == second.seed:
            raise CocomixError(
                f"{first.path} and {second.path} are both seed {first.seed} of {name}; runs of a group need "
                "different seeds, so leave one out or give each its own group (name=RUN)"
            )
    return Group(name, tuple(runs))


def _names(automatic: dict[str, list[TrainingRun]], taken: dict[str, Group]) -> list[str]:
    """Names from the folders of the runs, without their seeds; whole paths if these names are not unique."""
    names = []
    for runs in automatic.values():
        stems = {_SEED_SUFFIX.sub("", run.path.resolve().name) for run in runs}
        stem = stems.pop() if len(runs) > 1 and len(stems) == 1 else ""
        if runs:
            names.append(stem or runs[0].path.resolve().name)
    counts = Counter([*names, *taken])
    firsts = [runs[0] for runs in automatic.values() if runs]
    return [name if counts[name] == 1 else str(run.path) for name, run in zip(names, firsts, strict=True)]


def _check_comparable(runs: Sequence[TrainingRun]) -> None:
    """Refuse runs whose losses were measured on different tokens."""
    first = runs[0]
    for run in runs[1:]:
        if run.settings["inputs"]["data"] != first.settings["inputs"]["data"]:
            raise CocomixError(
                f"{first.path} and {run.path} were trained on different datasets, so their losses can't be compared"
            )
        windows = [each.settings["max_validation_windows"] for each in (first, run)]
        if windows[0] != windows[1]:
            raise CocomixError(
                f"{first.path} and {run.path} measured their validation losses on different windows "
                f"(max_validation_windows {windows[0]} and {windows[1]}), so they can't be compared"
            )
