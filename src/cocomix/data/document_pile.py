"""Tokenized documents on disk, in the order they were read, on their way to windows.

DIR/00000.arrow   some thousand documents: input_ids, num_tokens, num_bytes, digest
DIR/complete      the source was read to its end, or as far as is wanted

Every file is whole or absent. So an interrupted process goes on after the documents that are there, and there is no other
state. `datasets` maps the files into memory, which stays small whatever the size of the corpus.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow as pa

from cocomix.base.artifacts import atomic

BATCHES_PER_FILE = 64


class DocumentPile:
    """Documents as `Encoder` makes them.

    Args:
        folder: of the files; made if need be, and continued if they are there.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)

    @property
    def is_complete(self) -> bool:
        return (self.folder / "complete").exists()

    @property
    def num_documents(self) -> int:
        return len(self.rows()) if self._files() else 0

    def complete(self, batches: Iterator[pa.RecordBatch]) -> None:
        """Append all documents that are left."""
        for index in itertools.count(len(self._files())):
            first = next(batches, None)
            if first is None:
                break
            path = self.folder / f"{index:05d}.arrow"
            with atomic(path) as partial, pa.ipc.new_stream(partial, first.schema) as writer:
                writer.write_batch(first)
                for batch in itertools.islice(batches, BATCHES_PER_FILE - 1):
                    writer.write_batch(batch)
        (self.folder / "complete").touch()

    def rows(self) -> Any:
        """All documents, as a `datasets.Dataset`."""
        return datasets.concatenate_datasets([datasets.Dataset.from_file(str(file)) for file in self._files()])

    def column(self, name: str) -> np.ndarray:
        """[documents] `num_tokens`, `num_bytes` (int64) or `digest` (uint64) of all."""
        table = self.rows().select_columns([name]).with_format("arrow")[:]
        return np.asarray(table[name].to_numpy())

    def _files(self) -> list[Path]:
        return sorted(self.folder.glob("*.arrow"))
