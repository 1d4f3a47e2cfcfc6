"""`metrics.jsonl`, the primary record of a run, with one JSON object per line.

When a run resumes, the file is truncated to its length at the checkpoint, so it reads as if nothing had happened.
"""

from __future__ import annotations

import json
import os
from pathlib import Path

from cocomix.base.errors import CocomixError
from cocomix.base.kinds import METRICS_NAME


class MetricsFile:
    """A metrics file open for appending.

    Args:
        output: folder of the run.
        num_bytes: length to which an existing file is truncated.

    Raises:
        CocomixError: the existing file is shorter.
    """

    def __init__(self, output: Path, num_bytes: int = 0) -> None:
        size = (output / METRICS_NAME).stat().st_size if (output / METRICS_NAME).exists() else 0
        if size < num_bytes:
            raise CocomixError(
                f"{output / METRICS_NAME} has {size} bytes, but had {num_bytes} when the checkpoint was written: restore "
                f"it, or delete {output} to start over"
            )
        self._file = (output / METRICS_NAME).open("ab")
        self._file.truncate(num_bytes)
        self._file.seek(0, os.SEEK_END)  # truncating can leave the position past the new end

    def append(self, **values: float | int) -> None:
        self._file.write(json.dumps(values).encode() + b"\n")
        self._file.flush()

    def sync(self) -> int:
        """Sync the file to disk; returns its length in bytes."""
        os.fsync(self._file.fileno())
        return self._file.tell()

    def close(self) -> None:
        self._file.close()
