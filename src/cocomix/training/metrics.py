"""`metrics.jsonl`: the primary record of a run, one JSON object a line.

On resuming, the file is cut back to what the checkpoint knew, so that it reads as if nothing had happened.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from cocomix.base.errors import CocomixError

NAME = "metrics.jsonl"


class MetricsFile:
    """Appends lines.

    Args:
        output: folder of the run.
        num_bytes: cut a former file back to this length.
    """

    def __init__(self, output: Path, num_bytes: int = 0) -> None:
        self._file = (output / NAME).open("ab")
        self._file.truncate(num_bytes)
        self._file.seek(0, os.SEEK_END)  # truncating leaves the position behind the new end

    def append(self, **values: float | int) -> None:
        self._file.write(json.dumps(values).encode() + b"\n")
        self._file.flush()

    def sync(self) -> int:
        """Bring what was appended to the disk; returns how long the file is."""
        os.fsync(self._file.fileno())
        return self._file.tell()

    def close(self) -> None:
        self._file.close()


def read_metrics(run: Path) -> list[dict[str, Any]]:
    """All lines of a run's metrics; a last one that is still being written is left out."""
    try:
        whole = (run / NAME).read_text(encoding="utf-8").rpartition("\n")[0]
        return [json.loads(line) for line in whole.splitlines()]
    except (OSError, json.JSONDecodeError) as error:
        raise CocomixError(f"{run / NAME} can't be read ({error}); is {run} a finished training run?") from error
