"""A tiny student with concepts, and its inspection."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from cocomix import InspectConfig, TrainConfig, inspect, train
from tests.conftest import CONCEPT, Tiny


@pytest.fixture(scope="session")
def student(tiny: Tiny, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A training run with a concept mixer; tests must not write into it."""
    folder = tmp_path_factory.mktemp("student") / "cocomix"
    mixer = CONCEPT
    train(TrainConfig(data=tiny.data, output=folder, labels=tiny.concepts, student=mixer, num_tokens=4096))
    return folder


def config(tiny: Tiny, student: Path, output: Path, **settings: object) -> InspectConfig:
    """Everything given, few of everything."""
    given = {"model": student, "data": tiny.data, "labels": tiny.concepts, "teacher": tiny.teacher, "sae": tiny.sae}
    few = {"num_contexts": 3, "num_tokens": 4, "num_nearest": 3, "num_probe_windows": 8, "max_windows": 24}
    return InspectConfig(output=output, **{**given, **few, **settings})  # type: ignore[arg-type]


@pytest.fixture(scope="session")
def inspection(tiny: Tiny, student: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Made once; tests must not write into it."""
    folder = tmp_path_factory.mktemp("inspection")
    own = Path(shutil.copytree(student, folder / "cocomix"))  # names are written beside the weights
    inspect(config(tiny, own, folder / "inspection"))
    return folder / "inspection"
