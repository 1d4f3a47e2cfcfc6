"""`metrics.jsonl`, the primary record of a run, with one JSON object per line.

When a run resumes, the file is truncated to its length at the checkpoint, so it reads as if nothing had happened. All lines
are also kept in memory, some megabytes for a long run: a file that was changed or deleted while the run works is written
again.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cocomix.base.artifacts import atomic
from cocomix.base.errors import CocomixError
from cocomix.base.kinds import METRICS_NAME
from cocomix.base.progress import say


class MetricsFile:
    """The metrics of a run, line by line.

    Args:
        output: folder of the run.
        checkpoint: what `sync` returned when the checkpoint was written that the run continues from; None: it starts anew.

    Raises:
        CocomixError: the file does not begin with what it held then.
    """

    def __init__(self, output: Path, checkpoint: Mapping[str, Any] | None = None) -> None:
        self._path = output / METRICS_NAME
        self._content = bytearray()
        if checkpoint is not None:
            self._content += self._read()[: checkpoint["num_metric_bytes"]]
            now = self._state()
            # Version 0.1 recorded the length alone.
            if any(checkpoint.get(name, value) != value for name, value in now.items()):
                raise CocomixError(
                    f"{self._path} is not what it was when the checkpoint was written; restore it, or delete {output} to "
                    "start over"
                )
        with self._path.open("ab") as file:
            file.truncate(len(self._content))

    def append(self, **values: float | int) -> None:
        line = json.dumps(values).encode() + b"\n"
        self._content += line
        with self._path.open("ab") as file:
            file.write(line)

    def sync(self) -> dict[str, Any]:
        """Make sure that the file on disk holds every line; returns its length and checksum, for a checkpoint."""
        if self._path.exists() and self._read() == self._content:
            with self._path.open("rb") as file:
                os.fsync(file.fileno())
        else:
            say(f"{self._path} was changed or deleted while the run worked; it is written again")
            with atomic(self._path) as partial:
                partial.write_bytes(self._content)
        return self._state()

    def _read(self) -> bytes:
        return self._path.read_bytes() if self._path.exists() else b""

    def _state(self) -> dict[str, Any]:
        return {
            "num_metric_bytes": len(self._content),
            "metrics_sha256": hashlib.sha256(self._content).hexdigest(),
        }
