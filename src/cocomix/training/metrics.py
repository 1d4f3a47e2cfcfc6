"""What a run writes down about itself.

`metrics.jsonl` is the primary record, one JSON object a line. On resuming, the file is cut back to what the checkpoint
knew, so that it reads as if nothing had happened.
"""

from __future__ import annotations

import json
import os
from pathlib import Path

from cocomix.base.errors import CocomixError
from cocomix.base.kinds import METRICS_NAME


class MetricsFile:
    """Appends lines.

    Args:
        output: folder of the run.
        num_bytes: cut a former file back to this length.

    Raises:
        CocomixError: the former file is shorter.
    """

    def __init__(self, output: Path, num_bytes: int = 0) -> None:
        found = (output / METRICS_NAME).stat().st_size if (output / METRICS_NAME).exists() else 0
        if found < num_bytes:
            raise CocomixError(
                f"{output / METRICS_NAME} has {found} bytes, and had {num_bytes} when the checkpoint was written: put it "
                f"back, or delete {output} to start over"
            )
        self._file = (output / METRICS_NAME).open("ab")
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
