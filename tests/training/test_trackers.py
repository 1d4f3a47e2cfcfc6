"""Trackers: the lines of metrics.jsonl arrive, a resumed run goes on, and what is not installed is said."""

from __future__ import annotations

import importlib.util
import json
import os
import sqlite3
import subprocess
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from cocomix import CocomixError
from cocomix.base import artifacts
from cocomix.training.trackers import TRACKERS_FOLDER, Trackers

LINES = [
    {"step": 10, "train_tokens": 100, "lm_loss": 5.0},
    {"step": 20, "train_tokens": 200, "lm_loss": 4.0},
    {"step": 20, "train_tokens": 200, "validation_loss": 4.5},
    {"step": 30, "train_tokens": 300, "lm_loss": 3.0},
]
needs = {
    name: pytest.mark.skipif(importlib.util.find_spec(name) is None, reason=f"{name} is not installed")
    for name in ("tensorboard", "wandb", "trackio")
}


def interrupted_and_continued(name: str, output: Path) -> None:
    """Three lines, a kill after the checkpoint of step 10, and the run goes on from there."""
    trackers = Trackers([name], output, {"seed": 3})
    for line in LINES[:3]:
        trackers.log(line)
    trackers.close()
    trackers = Trackers([name], output, {"seed": 3}, step=10)
    for line in LINES[1:]:
        trackers.log(line)
    trackers.close()


@needs["tensorboard"]
def test_tensorboard_shows_each_step_once(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    interrupted_and_continued("tensorboard", tmp_path)
    events = EventAccumulator(str(tmp_path / TRACKERS_FOLDER / "tensorboard")).Reload()
    points = {tag: [(e.step, e.value) for e in events.Scalars(tag)] for tag in events.Tags()["scalars"]}
    assert points == {
        "lm_loss": [(10, 5.0), (20, 4.0), (30, 3.0)],
        "train_tokens": [(10, 100.0), (20, 200.0), (20, 200.0), (30, 300.0)],
        "validation_loss": [(20, 4.5)],
    }


class FakeRun:
    """The part of a run of W&B or trackio that is used."""

    def __init__(self) -> None:
        self.points: list[tuple[int, dict[str, float]]] = []

    def log(self, values: dict[str, float], step: int) -> None:
        self.points.append((step, values))

    def finish(self) -> None:
        pass


@pytest.mark.parametrize("name", ["wandb", "trackio"])
def test_a_resumed_run_is_the_same_and_is_told_nothing_twice(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    run, begun = FakeRun(), []
    fake = ModuleType(name)

    def init(**options: Any) -> FakeRun:
        begun.append(options)
        return run

    fake.init, fake.finish, fake.Settings, fake.__spec__ = init, run.finish, SimpleNamespace, SimpleNamespace()  # type: ignore
    monkeypatch.setitem(sys.modules, name, fake)
    interrupted_and_continued(name, tmp_path)
    told = [(line["step"], {k: v for k, v in line.items() if k != "step"}) for line in LINES]
    assert run.points == told
    first, second = begun
    assert first == second
    assert first["resume"] == "allow"
    assert first["config"] == {"seed": 3}
    assert first["project"] == "cocomix"


@pytest.mark.slow
@needs["wandb"]
@needs["trackio"]
def test_the_real_ones_work_without_a_network(tmp_path: Path) -> None:
    """In a process of its own: both leave threads behind and read their variables when imported."""
    code = (
        "import json, sys; from pathlib import Path; from cocomix.training.trackers import Trackers\n"
        "for step, lines in ((0, LINES[:3]), (10, LINES[1:])):\n"
        "    trackers = Trackers(['wandb', 'trackio'], Path(sys.argv[1]), {'seed': 3}, step=step)\n"
        "    for line in lines: trackers.log(line)\n"
        "    trackers.close()\n"
    ).replace("LINES", repr(LINES))
    variables = {"WANDB_MODE": "offline", "WANDB_SILENT": "true", "TRACKIO_DIR": str(tmp_path / "store")}
    result = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "run")],
        capture_output=True,
        text=True,
        env=os.environ | variables,
    )
    assert result.returncode == 0, result.stderr
    assert result.stdout == ""
    files = list((tmp_path / "run" / TRACKERS_FOLDER / "wandb" / "wandb").glob("offline-run-*/run-*.wandb"))
    assert len({file.name for file in files}) == 1  # one run, in one or two parts
    with sqlite3.connect(tmp_path / "store" / "cocomix.db") as store:
        rows = store.execute("SELECT run_name, step, metrics FROM metrics ORDER BY id").fetchall()
    assert len({name for name, _, _ in rows}) == 1
    assert [(step, json.loads(metrics)) for _, step, metrics in rows] == [
        (line["step"], {k: v for k, v in line.items() if k != "step"}) for line in LINES
    ]


def test_what_is_not_installed_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "wandb" else object())
    with pytest.raises(CocomixError, match=r"wandb.*pip install wandb"):
        Trackers(["wandb"], tmp_path)
    assert not (tmp_path / TRACKERS_FOLDER).exists()


def test_what_can_not_start_says_why(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def init(**_: Any) -> None:
        raise RuntimeError("no API key\nand more")

    fake = ModuleType("wandb")
    fake.init, fake.Settings, fake.__spec__ = init, SimpleNamespace, SimpleNamespace()  # type: ignore
    monkeypatch.setitem(sys.modules, "wandb", fake)
    with pytest.raises(CocomixError, match=r"wandb.*no API key.*`wandb login`"):
        Trackers(["wandb"], tmp_path)


def test_nothing_is_imported_and_nothing_is_content(tmp_path: Path) -> None:
    trackers = Trackers((), tmp_path)
    trackers.log(LINES[0])
    trackers.close()
    code = "import sys; import cocomix.training.trackers; print({'wandb', 'trackio', 'tensorboard'} & set(sys.modules))"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "set()"
    artifacts.write_json(tmp_path / "settings.json", {"kind": "x", "format_version": 1, "settings": {}})
    (tmp_path / TRACKERS_FOLDER / "wandb").mkdir(parents=True)
    (tmp_path / TRACKERS_FOLDER / "wandb" / "run.json").write_text("{}")
    assert artifacts.finish(tmp_path).files == {}
