"""Tokenized documents on disk, in the order in which they were read, before they become windows.

DIR/00000.arrow      thousands of documents: input_ids, num_tokens, num_bytes, digest
DIR/checksums.json   SHA-256 of every file
DIR/complete.json    what was left out; exists once the source was read to its end, or as far as needed

Every file is complete or absent, so an interrupted process continues after the documents on disk and needs no other state.
A damaged file is removed, with all that follow, and its documents are read again.
`datasets` memory-maps the files, so memory use does not grow with the corpus.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow as pa

from cocomix.base.artifacts import CHECKSUMS_NAME, atomic, read_checksums, read_json, sha256_of_file, write_json

BATCHES_PER_FILE = 64


class DocumentPile:
    """A growing folder of documents encoded by `Encoder`.

    Args:
        folder: folder of the files; created if missing, continued if not.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        recorded, files = read_checksums(folder), self._files()
        whole = itertools.takewhile(lambda file: recorded.get(file.name) == sha256_of_file(file), files)
        self._checksums = {file.name: recorded[file.name] for file in whole}
        if self._checksums.keys() != recorded.keys():
            self._completion.unlink(missing_ok=True)
        for file in files[len(self._checksums) :]:
            file.unlink()
        self.left_out: dict[str, int] = read_json(self._completion) if self.is_complete else {}
        """Counts of the documents that were left out while reading, by reason; kept with the pile once it is complete."""

    @property
    def is_complete(self) -> bool:
        return self._completion.exists()

    @property
    def num_documents(self) -> int:
        return len(self.rows()) if self._files() else 0

    def complete(self, batches: Iterator[pa.RecordBatch]) -> None:
        """Append the remaining documents and mark the pile as complete."""
        for index in itertools.count(len(self._files())):
            first = next(batches, None)
            if first is None:
                break
            path = self.folder / f"{index:05d}.arrow"
            with atomic(path) as partial, pa.ipc.new_stream(partial, first.schema) as writer:
                writer.write_batch(first)
                for batch in itertools.islice(batches, BATCHES_PER_FILE - 1):
                    writer.write_batch(batch)
            self._checksums[path.name] = sha256_of_file(path)
            write_json(self.folder / CHECKSUMS_NAME, self._checksums)
        write_json(self._completion, self.left_out)

    def rows(self) -> Any:
        """All documents, as a `datasets.Dataset`."""
        return datasets.concatenate_datasets([datasets.Dataset.from_file(str(file)) for file in self._files()])

    def column(self, name: str) -> np.ndarray:
        """One value per document, [documents]: `num_tokens` or `num_bytes` (int64), or `digest` (uint64)."""
        table = self.rows().select_columns([name]).with_format("arrow")[:]
        return np.asarray(table[name].to_numpy())

    @property
    def _completion(self) -> Path:
        return self.folder / "complete.json"

    def _files(self) -> list[Path]:
        return sorted(self.folder.glob("*.arrow"))
