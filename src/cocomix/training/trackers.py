"""Trackers, which also show the lines of `metrics.jsonl`: TensorBoard, Weights & Biases, trackio.

A tracker is imported when it is chosen. Its state for resuming is in the run's hidden folder `.trackers`, which is not part
of the finished run's content. A resumed run repeats the steps since its checkpoint, with the same values: TensorBoard drops
the earlier points, and the others are not sent the same steps again.
"""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import os
import sys
import uuid
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from cocomix.base import artifacts
from cocomix.base.errors import CocomixError, reason_of

TRACKERS_FOLDER = ".trackers"
PROJECT = "cocomix"


class Tracker(Protocol):
    """A service that shows scalars."""

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Show values of one step; may be called several times per step."""

    def close(self) -> None:
        """Flush and close."""


class Trackers:
    """All trackers of a run; with several ranks, only the first one has them.

    Args:
        names: any of `tensorboard`, `wandb`, `trackio`; may be empty.
        output: folder of the run.
        settings: settings of the run, shown beside its curves.
        step: number of steps done before, when resuming from a checkpoint.

    Raises:
        CocomixError: a tracker is not installed or can't be started.
    """

    def __init__(
        self, names: Sequence[str], output: Path, settings: Mapping[str, Any] | None = None, step: int = 0
    ) -> None:
        require_trackers(names)
        self._trackers: list[Tracker] = []
        for name in dict.fromkeys(names):
            folder = output / TRACKERS_FOLDER / name
            folder.mkdir(parents=True, exist_ok=True)
            try:
                self._trackers.append(_TRACKERS[name](folder, output.name, settings or {}, step))
            except Exception as error:  # each library raises its own types
                self.close()
                raise CocomixError(f"the tracker {name} can't be started: {reason_of(error)}{_HINTS[name]}") from error

    def log(self, line: Mapping[str, float]) -> None:
        """Show one line of `metrics.jsonl`."""
        values = {name: value for name, value in line.items() if name != "step"}
        for tracker in self._trackers:
            tracker.log(int(line["step"]), values)

    def close(self) -> None:
        """Close all trackers."""
        while self._trackers:
            self._trackers.pop().close()


def require_trackers(names: Sequence[str]) -> None:
    """Refuse a tracker that is not installed, before any work is done."""
    for name in names:
        if importlib.util.find_spec(name) is None:
            raise CocomixError(f"the tracker {name} is not installed; install it with `pip install {name}`")


class _TensorBoard:
    """Event files in the run's folder: `tensorboard --logdir RUN/.trackers`."""

    def __init__(self, folder: Path, name: str, settings: Mapping[str, Any], step: int) -> None:
        tensorboard = importlib.import_module("torch.utils.tensorboard")
        self._writer = tensorboard.SummaryWriter(str(folder), purge_step=step + 1)

    def log(self, step: int, values: Mapping[str, float]) -> None:
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)
        self._writer.flush()

    def close(self) -> None:
        self._writer.close()


class _Resumable:
    """A tracker's state for resuming a run: the run's id, and the last step that was sent."""

    def __init__(self, folder: Path) -> None:
        self._path = folder / "run.json"
        state = artifacts.read_json(self._path) if self._path.exists() else {}
        self.id: str = state.get("id") or uuid.uuid4().hex[:8]
        self._last_step_before = int(state.get("last_step", -1))
        self.mark_sent(self._last_step_before)

    def was_sent(self, step: int) -> bool:
        """Whether an earlier process sent this step."""
        return step <= self._last_step_before

    def mark_sent(self, step: int) -> None:
        artifacts.write_json(self._path, {"id": self.id, "last_step": step})


class _WeightsAndBiases:
    """W&B, configured by its own variables (`WANDB_MODE`, `WANDB_PROJECT`, `WANDB_ENTITY`)."""

    def __init__(self, folder: Path, name: str, settings: Mapping[str, Any], step: int) -> None:
        wandb = importlib.import_module("wandb")
        self._resumable = _Resumable(folder)
        self._run = wandb.init(
            project=os.environ.get("WANDB_PROJECT", PROJECT),
            name=name,
            id=self._resumable.id,
            resume="allow",
            dir=str(folder),
            config=dict(settings),
            settings=wandb.Settings(console="off"),  # otherwise it captures the live line
        )

    def log(self, step: int, values: Mapping[str, float]) -> None:
        if not self._resumable.was_sent(step):
            self._run.log(dict(values), step=step)
            self._resumable.mark_sent(step)

    def close(self) -> None:
        self._run.finish()


class _Trackio:
    """trackio's local store (`TRACKIO_DIR`), shown by `trackio show --project cocomix`."""

    def __init__(self, folder: Path, name: str, settings: Mapping[str, Any], step: int) -> None:
        self._trackio = importlib.import_module("trackio")
        self._resumable = _Resumable(folder)
        with contextlib.redirect_stdout(sys.stderr):  # standard output is for results
            self._run = self._trackio.init(
                project=PROJECT,
                name=f"{name}-{self._resumable.id}",
                resume="allow",
                config=dict(settings),
                embed=False,
            )

    def log(self, step: int, values: Mapping[str, float]) -> None:
        if not self._resumable.was_sent(step):
            self._run.log(dict(values), step=step)
            self._resumable.mark_sent(step)

    def close(self) -> None:
        with contextlib.redirect_stdout(sys.stderr):
            self._trackio.finish()


_TRACKERS: dict[str, Any] = {"tensorboard": _TensorBoard, "wandb": _WeightsAndBiases, "trackio": _Trackio}
_HINTS = {"tensorboard": "", "wandb": "; log in with `wandb login`, or set WANDB_MODE=offline", "trackio": ""}
