"""Parquet shards of fixed-size rows, and the tables read from them.

A shard holds one column a name and one row a window; each value is a fixed-size list. Tables are memory-mapped by
`datasets`, so that a random window of a corpus larger than memory is read in constant time.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from cocomix.base.errors import CocomixError

CACHE_NAME = ".arrow"


def shard_name(index: int) -> str:
    return f"{index:05d}.parquet"


def write_shard(folder: Path, index: int, columns: Mapping[str, np.ndarray]) -> None:
    """Write [num_windows, width] arrays as one Parquet file, whole or not at all; equal input gives equal bytes."""
    arrays = {
        name: pa.FixedSizeListArray.from_arrays(pa.array(values.reshape(-1)), values.shape[1])
        for name, values in columns.items()
    }
    partial = folder / f".{shard_name(index)}.partial"
    pq.write_table(pa.table(arrays), partial, compression="zstd")
    partial.replace(folder / shard_name(index))


class WindowTable:
    """Rows of a folder of shards, by index.

    Args:
        folder: where the shards are.
        num_shards: how many there must be.
    """

    def __init__(self, folder: Path, num_shards: int) -> None:
        files = [folder / shard_name(index) for index in range(num_shards)]
        missing = [file.name for file in files if not file.exists()]
        if missing:
            raise CocomixError(f"{folder} lacks {missing[0]}; delete the dataset and make it again")
        # The memory-mapped copy lies beside the shards, so that it goes with them: a stale one would be read silently.
        cache = str(folder / CACHE_NAME) if os.access(folder, os.W_OK) else None
        names = [str(file) for file in files]
        self._rows = datasets.Dataset.from_parquet(names, cache_dir=cache).with_format("numpy")

    def __len__(self) -> int:
        return len(self._rows)

    def take(self, column: str, indices: Sequence[int] | np.ndarray, dtype: type[np.generic] = np.int64) -> np.ndarray:
        """Values of one column at the given rows: [len(indices), width], of type `dtype`."""
        rows = self._rows.select_columns([column])[np.asarray(indices)]
        return np.stack(list(rows[column])).astype(dtype)
