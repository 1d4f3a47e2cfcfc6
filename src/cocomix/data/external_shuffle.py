"""A shuffle of tokenized documents that does not fit into memory: a radix sort, on disk, by a random key.

Every document gets 64 bits drawn from (seed, its number). Documents are appended to one of 32 buckets by the first five bits;
at the end a bucket that fits into memory is sorted there, and a larger one is split again by the next five. So the order
is that of the keys, which is a uniform permutation of all documents, and memory does not grow with the corpus.

DIR/00.rows   key, number and counts of each document of a bucket
DIR/00.ids    their token ids
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

import numpy as np

BITS = 5
NUM_BUCKETS = 2**BITS
#: What is sorted in memory at a time.
MAX_BUCKET_BYTES = 2**25
DOCUMENTS_PER_READ = 1024

ROW = np.dtype([("key", "<u8"), ("number", "<i8"), ("num_tokens", "<i8"), ("num_bytes", "<i8")])


def random_bits(*parts: int) -> int:
    """64 bits that are a pure function of some integers."""
    digest = hashlib.blake2b(":".join(map(str, parts)).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little")


class ShuffledPile:
    """Documents that come in any order and are read back in the order of their keys.

    Args:
        folder: of the files; made if need be, and continued if they are there.
        dtype: of the token ids.
        depth: how many times five bits have been used already.
    """

    def __init__(self, folder: Path, dtype: np.dtype, depth: int = 0) -> None:
        self.folder, self.dtype, self.depth = folder, dtype, depth
        folder.mkdir(parents=True, exist_ok=True)
        self._files: dict[Path, BinaryIO] = {}

    def add(self, rows: np.ndarray, ids: np.ndarray) -> None:
        """Append documents.

        Args:
            rows: [documents] of type `ROW`.
            ids: [tokens] of all of them.
        """
        buckets = (rows["key"] >> np.uint64(64 - BITS * (self.depth + 1))) & np.uint64(NUM_BUCKETS - 1)
        order = np.argsort(buckets, kind="stable")
        rows, ids = rows[order], gathered(ids, rows["num_tokens"], order)
        buckets, firsts = np.unique(buckets[order], return_index=True)
        ends = np.cumsum(rows["num_tokens"])
        for bucket, first, last in zip(buckets, firsts, [*firsts[1:], len(rows)], strict=True):
            start = ends[first] - rows["num_tokens"][first]
            self._append(self._path(int(bucket), "rows"), rows[first:last])
            self._append(self._path(int(bucket), "ids"), ids[start : ends[last - 1]])

    def flush(self) -> None:
        """Bring what was added to the disk."""
        for file in self._files.values():
            file.flush()
            os.fsync(file.fileno())

    def close(self) -> None:
        for file in self._files.values():
            file.close()
        self._files = {}

    def in_order(self) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """All documents by key, some at a time: rows of type `ROW`, and the ids of their tokens."""
        self.close()
        for bucket in range(NUM_BUCKETS):
            if not self._path(bucket, "rows").exists():
                continue
            rows = np.fromfile(self._path(bucket, "rows"), ROW, count=2)
            fits = self._path(bucket, "ids").stat().st_size <= MAX_BUCKET_BYTES
            yield from self._sorted(bucket) if fits or len(rows) == 1 else self._split(bucket)

    def _sorted(self, bucket: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        rows = np.fromfile(self._path(bucket, "rows"), ROW)
        ids = np.fromfile(self._path(bucket, "ids"), self.dtype)
        order = np.argsort(rows["key"], kind="stable")
        for start in range(0, len(order), DOCUMENTS_PER_READ):
            part = order[start : start + DOCUMENTS_PER_READ]
            yield rows[part], gathered(ids, rows["num_tokens"], part)

    def _split(self, bucket: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """The documents of a large bucket, through a pile of its own."""
        folder = self.folder / f"{bucket:02d}"
        shutil.rmtree(folder, ignore_errors=True)  # of a former process
        pile = ShuffledPile(folder, self.dtype, self.depth + 1)
        with contextlib.closing(pile), self._path(bucket, "rows").open("rb") as rows_file:
            with self._path(bucket, "ids").open("rb") as ids_file:
                while len(rows := np.frombuffer(rows_file.read(ROW.itemsize * DOCUMENTS_PER_READ), ROW)):
                    num_bytes = int(rows["num_tokens"].sum()) * self.dtype.itemsize
                    pile.add(rows, np.frombuffer(ids_file.read(num_bytes), self.dtype))
            yield from pile.in_order()
        shutil.rmtree(folder)

    def _path(self, bucket: int, suffix: str) -> Path:
        return self.folder / f"{bucket:02d}.{suffix}"

    def _append(self, path: Path, values: np.ndarray) -> None:
        if path not in self._files:
            self._files[path] = path.open("ab")
        self._files[path].write(np.ascontiguousarray(values).data)


def gathered(ids: np.ndarray, lengths: np.ndarray, order: np.ndarray) -> np.ndarray:
    """The ids of some documents, one after another.

    Args:
        ids: [tokens] of all documents.
        lengths: [documents] tokens of each.
        order: which documents.
    """
    ends = np.cumsum(lengths)
    return np.concatenate([ids[ends[i] - lengths[i] : ends[i]] for i in order])
