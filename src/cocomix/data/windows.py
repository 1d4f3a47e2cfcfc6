"""Documents joined and cut into the windows of one split."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from cocomix.base.errors import CocomixError
from cocomix.data.shards import write_shard

WINDOWS_PER_SHARD = 8192


class WindowWriter:
    """Writes documents, in the order they come, as shards of windows; the last, incomplete window is dropped.

    Args:
        folder: of the split; made if need be.
        context_length: tokens T in a window.
        max_windows: stop at so many; None: never.
    """

    def __init__(self, folder: Path, context_length: int, max_windows: int | None = None) -> None:
        folder.mkdir(exist_ok=True)
        self.folder, self.context_length, self.max_windows = folder, context_length, max_windows
        self.num_documents = self.num_bytes = self.num_tokens = self.num_windows = self.num_shards = 0
        self._ids: list[np.ndarray] = []
        self._owners: list[np.ndarray] = []
        self._num_waiting = 0

    @property
    def is_full(self) -> bool:
        """Whether more documents would change nothing."""
        waiting = self._num_waiting // self.context_length
        return self.max_windows is not None and self.num_windows + waiting >= self.max_windows

    def add(self, ids: np.ndarray, lengths: np.ndarray, num_bytes: int) -> None:
        """More documents.

        Args:
            ids: [tokens] of all of them.
            lengths: [documents] tokens of each.
            num_bytes: of their text in all.
        """
        numbers = np.arange(self.num_documents, self.num_documents + len(lengths), dtype=np.int32)
        self._ids.append(ids)
        self._owners.append(np.repeat(numbers, lengths))
        self._num_waiting += len(ids)
        self.num_documents += len(lengths)
        self.num_tokens += len(ids)
        self.num_bytes += num_bytes
        if self._num_waiting // self.context_length >= WINDOWS_PER_SHARD:
            self._write(WINDOWS_PER_SHARD)

    def finish(self) -> dict[str, int]:
        """Write what is left; returns the counts of the split."""
        self._write(1)
        if self.num_windows == 0:
            raise CocomixError(
                f"the {self.folder.name} text has {self.num_tokens} tokens, less than one window of "
                f"{self.context_length}: give more text, a smaller context_length or another validation_fraction"
            )
        names = ("num_documents", "num_bytes", "num_tokens", "num_windows", "num_shards")
        return {name: getattr(self, name) for name in names}

    def _write(self, min_windows: int) -> None:
        """Write shards while there are at least `min_windows` windows for one."""
        if not self._ids:
            return
        T = self.context_length
        ids, owners = np.concatenate(self._ids), np.concatenate(self._owners)
        while (count := self._next_shard(len(ids) // T)) >= min_windows:
            columns = {"input_ids": ids[: count * T], "document_ids": owners[: count * T]}
            write_shard(self.folder, self.num_shards, {key: value.reshape(count, T) for key, value in columns.items()})
            ids, owners = ids[count * T :], owners[count * T :]
            self.num_windows += count
            self.num_shards += 1
        self._ids, self._owners, self._num_waiting = [ids], [owners], len(ids)

    def _next_shard(self, num_whole: int) -> int:
        left = num_whole if self.max_windows is None else min(num_whole, self.max_windows - self.num_windows)
        return min(left, WINDOWS_PER_SHARD)
