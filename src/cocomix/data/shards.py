"""Parquet shards of fixed-size rows, and the tables read from them.

A shard has one row per window; each value is a fixed-size list. `datasets` memory-maps the tables, so that a random window
of a corpus larger than memory is read in constant time.
"""

from __future__ import annotations

import fcntl
import os
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from cocomix.base import artifacts
from cocomix.base.artifacts import atomic
from cocomix.base.errors import CocomixError

CACHE_NAME = ".arrow"


def shard_name(index: int, extension: str = "parquet") -> str:
    return f"{index:05d}.{extension}"


def write_shard(folder: Path, index: int, columns: Mapping[str, np.ndarray]) -> None:
    """Write [num_windows, width] arrays as one Parquet file, atomically; equal input gives equal bytes."""
    arrays = {
        name: pa.FixedSizeListArray.from_arrays(pa.array(values.reshape(-1)), values.shape[1])
        for name, values in columns.items()
    }
    with atomic(folder / shard_name(index)) as partial:
        pq.write_table(pa.table(arrays), partial, compression="zstd")


class WindowTable:
    """Rows of a folder of shards, by index.

    Args:
        folder: folder of the shards.
        num_shards: number of shards.

    Raises:
        CocomixError: a shard is missing.
    """

    def __init__(self, folder: Path, num_shards: int) -> None:
        files = [folder / shard_name(index) for index in range(num_shards)]
        missing = [file.name for file in files if not file.exists()]
        if missing:
            raise CocomixError(f"{folder} lacks {missing[0]}; delete the dataset and make it again")
        self._rows = _mapped(folder, [str(file) for file in files]).with_format("numpy")

    def __len__(self) -> int:
        return len(self._rows)

    def take(self, column: str, indices: Sequence[int] | np.ndarray, dtype: type[np.generic] = np.int64) -> np.ndarray:
        """Values of one column at the given rows, [len(indices), width], with dtype `dtype`."""
        rows = self._rows.select_columns([column])[np.asarray(indices)]
        return np.stack(list(rows[column])).astype(dtype)


def _mapped(folder: Path, files: Sequence[str]) -> datasets.Dataset:
    """The shards as one memory-mapped copy, verified by checksums of its own.

    The copy is kept beside the shards, so that it is deleted with them: a stale copy would be read silently.
    """
    if not os.access(folder, os.W_OK):
        return datasets.Dataset.from_parquet(list(files))
    cache = folder / CACHE_NAME
    with (folder / f"{CACHE_NAME}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # ranks and concurrent runs may open a new dataset at the same time
        recorded = artifacts.read_checksums(cache)
        if cache.exists() and _checksums(cache) != recorded:
            shutil.rmtree(cache)  # unfinished or damaged: make it again
            recorded = {}
        rows = datasets.Dataset.from_parquet(list(files), cache_dir=str(cache))
        if {file.relative_to(cache).as_posix() for file in cache.rglob("*.arrow")} != recorded.keys():
            artifacts.write_json(cache / artifacts.CHECKSUMS_NAME, _checksums(cache))
    return rows


def _checksums(cache: Path) -> dict[str, str]:
    return artifacts.checksums_of(cache, (file.relative_to(cache).as_posix() for file in cache.rglob("*.arrow")))
