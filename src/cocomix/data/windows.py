"""Joins documents and cuts them into the windows of one split."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from cocomix.base.errors import CocomixError
from cocomix.base.formats import counted
from cocomix.data.shards import write_shard

WINDOWS_PER_SHARD = 8192


class WindowWriter:
    """Writes documents, in the order given, as shards of windows; the last, incomplete window is dropped.

    Args:
        folder: folder of the split; created if missing.
        context_length: T, tokens per window.
        max_windows: number of windows after which to stop; None: no limit.
    """

    def __init__(self, folder: Path, context_length: int, max_windows: int | None = None) -> None:
        folder.mkdir(exist_ok=True)
        self.folder, self.context_length, self.max_windows = folder, context_length, max_windows
        self.num_documents = self.num_bytes = self.num_tokens = self.num_windows = self.num_shards = 0
        # One shard, filled in place, since joining pieces would hold it several times.
        self._ids = np.empty(0)
        self._owners = np.empty(WINDOWS_PER_SHARD * context_length, np.int32)
        self._filled = 0

    @property
    def is_full(self) -> bool:
        """Whether more documents would change nothing."""
        waiting = self._filled // self.context_length
        return self.max_windows is not None and self.num_windows + waiting >= self.max_windows

    def add(self, ids: np.ndarray, lengths: np.ndarray, num_bytes: int) -> None:
        """Add documents.

        Args:
            ids: [tokens], token ids of all the documents.
            lengths: [documents], number of tokens of each.
            num_bytes: total bytes of their text.
        """
        if not len(self._ids):
            self._ids = np.empty(len(self._owners), ids.dtype)
        numbers = np.arange(self.num_documents, self.num_documents + len(lengths), dtype=np.int32)
        owners = np.repeat(numbers, lengths)
        self.num_documents += len(lengths)
        self.num_tokens += len(ids)
        self.num_bytes += num_bytes
        while len(ids):
            count = min(len(ids), len(self._ids) - self._filled)
            target = slice(self._filled, self._filled + count)
            self._ids[target], self._owners[target] = ids[:count], owners[:count]
            ids, owners = ids[count:], owners[count:]
            self._filled += count
            if self._filled == len(self._ids):
                self._write_shard()

    def finish(self) -> dict[str, int]:
        """Write the last shard; returns the counts of the split.

        Raises:
            CocomixError: there is less than one window.
        """
        self._write_shard()
        if self.num_windows == 0:
            raise CocomixError(
                f"the {self.folder.name} text has {counted(self.num_tokens, 'token')}, less than one window of "
                f"{self.context_length}: give more text, a smaller context_length or another validation_fraction"
            )
        names = ("num_documents", "num_bytes", "num_tokens", "num_windows", "num_shards")
        return {name: getattr(self, name) for name in names}

    def _write_shard(self) -> None:
        """Write the complete windows, if any, and drop the rest."""
        T = self.context_length
        left = WINDOWS_PER_SHARD if self.max_windows is None else self.max_windows - self.num_windows
        count = min(self._filled // T, left)
        self._filled = 0
        if count > 0:
            ids, owners = (values[: count * T].reshape(count, T) for values in (self._ids, self._owners))
            write_shard(self.folder, self.num_shards, {"input_ids": ids, "document_ids": owners})
            self.num_windows += count
            self.num_shards += 1
