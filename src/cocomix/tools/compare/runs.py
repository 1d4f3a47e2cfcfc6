"""The runs of a comparison, finished or not: read from their folders, and grouped where they differ in the seed alone."""

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
from cocomix.base.kinds import METRICS_NAME, TRAINING_RUN, read_metrics
from cocomix.tools.compare.curves import CURVE_AXES, validation_curve

#: What a folder's name may end with to tell seeds apart.
_SEED_SUFFIX = re.compile(r"[-_.]?(seed|s)?[-_.]?\d+$")

#: What a comparison reads of a run's settings.
_NEEDED_SETTINGS = ("seed", "num_tokens", "max_validation_windows", "inputs")


@dataclass(frozen=True)
class Run:
    """One training run."""

    path: Path
    """Its folder."""
    settings: dict[str, Any]
    """As it was begun with."""
    is_finished: bool
    curve: list[dict[str, float | int]]
    """Its validation points so far."""
    consumed: dict[str, float | int]
    """Tokens, FLOPs and seconds so far, by the names of the curve's axes."""
    num_parameters: int | None
    """None: of an unfinished run."""
    teacher_flops: float | None
    """What the teacher cost on top; None: of an unfinished run."""

    @property
    def seed(self) -> int:
        return int(self.settings["seed"])

    @property
    def loss(self) -> float | None:
        """The last validation loss; None: there is none yet."""
        return self.curve[-1]["validation_loss"] if self.curve else None


@dataclass(frozen=True)
class Group:
    """Runs that are to be seen as one, with several seeds."""

    name: str
    runs: tuple[Run, ...]
    """In the order of their seeds, which differ."""


def read_run(path: Path) -> Run:
    """Read a training run's settings and metrics.

    Raises:
        CocomixError: it is no training run, or its metrics are damaged.
    """
    settings_file = path / artifacts.SETTINGS_NAME
    header = artifacts.read_json(settings_file) if settings_file.exists() else {}
    if not isinstance(header, dict) or header.get("kind") != TRAINING_RUN:
        found = (
            f"it holds a {header['kind']}" if isinstance(header, dict) and "kind" in header else "nothing of cocomix"
        )
        raise CocomixError(f"{path} is not a training run ({found}); give folders made by `cocomix train`")
    settings = _part(header, "settings", settings_file)
    manifest_file = path / artifacts.MANIFEST_NAME
    is_finished = manifest_file.exists()
    facts: dict[str, Any] = {}
    if is_finished:
        manifest = artifacts.read_json(manifest_file)
        facts = _part(manifest, "facts", manifest_file)
        metrics = _part(_part(manifest, "files", manifest_file), METRICS_NAME, manifest_file)
        recorded = metrics.get("sha256")
        if not (path / METRICS_NAME).exists() or artifacts.sha256_of_file(path / METRICS_NAME) != recorded:
            raise CocomixError(f"{path / METRICS_NAME} is missing or does not match its checksum; train that run again")
    for name in _NEEDED_SETTINGS:
        if name not in settings:
            raise CocomixError(f"{settings_file} is damaged (it has no {name}); train that run again")
    lines = read_metrics(path) if (path / METRICS_NAME).exists() else []
    last = lines[-1] if lines else {}
    return Run(
        path=path,
        settings=settings,
        is_finished=is_finished,
        curve=validation_curve(lines),
        consumed={axis: last.get(axis, 0) for axis in CURVE_AXES},
        num_parameters=facts.get("num_parameters"),
        teacher_flops=facts.get("teacher_flops"),
    )


def _part(value: Any, name: str, file: Path) -> dict[str, Any]:
    """An object inside one of a file's; damage in one sentence."""
    found = value.get(name) if isinstance(value, dict) else None
    if not isinstance(found, dict):
        raise CocomixError(f"{file} is damaged (it has no {name}); train that run again")
    return found


def read_groups(words: Sequence[str]) -> list[Group]:
    """Read the runs that words name, and group those that differ in nothing but the seed.

    Args:
        words: folders of runs, or groups of one's own as `name=RUN,RUN`.

    Raises:
        CocomixError: a word names no run, two runs of a group have one seed, or two runs can't be compared.
    """
    chosen: list[Group] = []
    automatic: dict[str, list[Run]] = {}
    for word in words:
        name, is_group, paths = word.partition("=")
        if is_group and not Path(word).exists():
            runs = [read_run(Path(path)) for path in paths.split(",") if path]
            if not name or not runs:
                raise CocomixError(f"{word!r} is no group; write name=RUN,RUN")
            chosen.append(_group(name, runs))
            automatic[f"={name}"] = []  # keeps its place
        else:
            run = read_run(Path(word))
            automatic.setdefault(_settings_without_seed(run), []).append(run)
    by_name = {group.name: group for group in chosen}
    if len(by_name) < len(chosen):
        raise CocomixError("two groups have one name; give each its own")
    names = dict(zip((key for key, runs in automatic.items() if runs), _names(automatic, by_name), strict=True))
    groups = [by_name[key[1:]] if not runs else _group(names[key], runs) for key, runs in automatic.items()]
    _check_comparable([run for group in groups for run in group.runs])
    return groups


def _settings_without_seed(run: Run) -> str:
    return artifacts.fingerprint_of_json({name: value for name, value in run.settings.items() if name != "seed"})


def _group(name: str, runs: Sequence[Run]) -> Group:
    runs = sorted(runs, key=lambda run: run.seed)
    for first, second in itertools.pairwise(runs):
        if first.seed == second.seed:
            raise CocomixError(
                f"{first.path} and {second.path} are both seed {first.seed} of {name}; runs of a group differ in their "
                "seed, so leave one out or give each a group of its own (name=RUN)"
            )
    return Group(name, tuple(runs))


def _names(automatic: dict[str, list[Run]], taken: dict[str, Group]) -> list[str]:
    """Names from the runs' folders: what they have in common without their seeds; whole paths where that is not unique."""
    names = []
    for runs in automatic.values():
        stems = {_SEED_SUFFIX.sub("", run.path.resolve().name) for run in runs}
        stem = stems.pop() if len(runs) > 1 and len(stems) == 1 else ""
        if runs:
            names.append(stem or runs[0].path.resolve().name)
    counts = Counter([*names, *taken])
    firsts = [runs[0] for runs in automatic.values() if runs]
    return [name if counts[name] == 1 else str(run.path) for name, run in zip(names, firsts, strict=True)]


def _check_comparable(runs: Sequence[Run]) -> None:
    """Refuse losses on different tokens: each against the first's."""
    first = runs[0]
    for run in runs[1:]:
        if run.settings["inputs"]["data"] != first.settings["inputs"]["data"]:
            raise CocomixError(
                f"{first.path} and {run.path} were trained on different datasets, so their losses can't be compared"
            )
        ours, theirs = (of.settings["max_validation_windows"] for of in (first, run))
        if ours != theirs:
            raise CocomixError(
                f"{first.path} and {run.path} measured their validation losses on different windows "
                f"(max_validation_windows {ours} and {theirs}), so they can't be compared"
            )
