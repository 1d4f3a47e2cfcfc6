"""Runs of the tiny students, and what is compared between them."""

from __future__ import annotations

import dataclasses
import faulthandler
import itertools
import os
import signal
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch
from safetensors.torch import load_file
from torch import distributed
from torch import multiprocessing as processes
from torch.distributed.checkpoint.filesystem import FileSystem

from cocomix import DistillationConfig, HiddenRegressionConfig, MultiTokenConfig, TrainConfig
from cocomix.base.kinds import read_metrics
from cocomix.cli.main import main
from cocomix.mixers.config import PauseConfig
from cocomix.training import trainer
from tests.conftest import CONCEPT, STUDENT, Tiny

TIMES = ("train_seconds", "tokens_per_second")
#: A rank that lives longer hangs.
HANG_SECONDS = 300

_numbers = itertools.count()


def config(tiny: Tiny, output: Path, kind: str = "cocomix", **settings: object) -> TrainConfig:
    """A run of 20 steps."""
    shared: dict[str, object] = {"data": tiny.data, "output": output, "num_tokens": 2560, "num_evaluations": 4}
    shared |= {"checkpoint_every_steps": 3, "max_validation_windows": 8}
    kinds: dict[str, dict[str, object]] = {
        "ntp": {"student": STUDENT},
        "cocomix": {"student": CONCEPT, "labels": tiny.concepts},
        "loss only": {
            "student": dataclasses.replace(CONCEPT, mixer=CONCEPT.mixer.changed(mixing="none")),
            "labels": tiny.concepts,
        },
        "kd": {"student": STUDENT, "teacher": tiny.teacher, "distillation": DistillationConfig(weight=0.5)},
        "hidden": {
            "student": STUDENT,
            "teacher": tiny.teacher,
            "hidden_regression": HiddenRegressionConfig(weight=0.5),
        },
        "ending": {
            "student": STUDENT,
            "teacher": tiny.teacher,
            "hidden_regression": HiddenRegressionConfig(weight=0.5, loss="cosine", end=0.5),
            "multi_token": MultiTokenConfig(weight=0.5, schedule="linear", end=0.8),
        },
        "pause": {"student": dataclasses.replace(STUDENT, mixer=PauseConfig())},
    }
    return TrainConfig(**shared | kinds[kind] | settings)  # type: ignore[arg-type]


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model.safetensors")


def equal_weights(folder: Path, other: Path) -> bool:
    """To the bit."""
    first, second = weights(folder), weights(other)
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


def untimed(folder: Path) -> list[dict[str, float]]:
    """The metrics without what differs from run to run."""
    return [{key: value for key, value in line.items() if key not in TIMES} for line in read_metrics(folder)]


@contextmanager
def in_step(step: int, act: Callable[[], object]) -> Iterator[None]:
    """Do something while a 0-based step of the run within is prepared."""

    def noted(seed: int, current: int, *sizes: int) -> np.ndarray:
        if current == step:
            act()
        return windows_of_step(seed, current, *sizes)

    windows_of_step = trainer.windows_of_step
    with mock.patch.object(trainer, "windows_of_step", noted):
        yield


def terminate() -> None:
    """As `kill` does to this process."""
    signal.raise_signal(signal.SIGTERM)


@contextmanager
def full_disk(after: int = 0) -> Iterator[None]:
    """The disk is full for all checkpoint files except the first `after`."""
    create = FileSystem.create_stream
    opened = itertools.count()

    def stream(self: FileSystem, path: str | Path, mode: str) -> Any:
        return create(self, path if next(opened) < after else "/dev/full", mode)

    with mock.patch.object(FileSystem, "create_stream", stream):
        yield


def forked(work: Callable[..., None], arguments: tuple[Any, ...], num_ranks: int, *, join: bool = True) -> Any:
    """Processes that call `work` with a rank and `arguments`; one that hangs says where, and ends."""

    def watched(*given: Any) -> None:
        faulthandler.register(signal.SIGALRM, chain=True)
        signal.alarm(HANG_SECONDS)
        work(*given)

    return processes.start_processes(watched, arguments, num_ranks, join=join, start_method="fork")


def on_ranks(num_ranks: int, folder: Path, work: Callable[[int], None]) -> None:
    """Call `work` with its rank in `num_ranks` forked processes, joined over gloo; what one raises is raised here.

    Args:
        num_ranks: number of processes.
        folder: folder for their files.
        work: function of the rank that each calls.
    """
    store = folder / f".store-{next(_numbers)}"
    forked(_joined, (num_ranks, store, work), num_ranks)


def command_on_ranks(num_ranks: int, argv: list[str]) -> None:
    """Run a command of cocomix in `num_ranks` processes with the environment of torchrun; forked, which is fast."""
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        port = probe.getsockname()[1]
    shared = {"WORLD_SIZE": num_ranks, "LOCAL_WORLD_SIZE": num_ranks, "MASTER_ADDR": "localhost", "MASTER_PORT": port}
    forked(_commanded, (shared, argv), num_ranks)


def _commanded(rank: int, shared: dict[str, object], argv: list[str]) -> None:
    os.environ.update({name: str(value) for name, value in (shared | {"RANK": rank, "LOCAL_RANK": rank}).items()})
    torch.set_num_threads(1)
    assert main(argv) == 0


def _joined(rank: int, num_ranks: int, store: Path, work: Callable[[int], None]) -> None:
    os.environ["LOCAL_RANK"] = str(rank)
    torch.set_num_threads(1)
    distributed.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=num_ranks)
    work(rank)
    distributed.destroy_process_group()
