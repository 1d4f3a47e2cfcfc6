"""Runs the cells of a table: one a core, each with one thread, or one after the other on a GPU."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from benchmarks.evidence.cells import Cell
from benchmarks.evidence.corpora import Places
from cocomix.base.progress import say

#: Runs a cell and returns its exit code.
Start = Callable[[Cell], int]


def num_workers(places: Places) -> int:
    return 1 if places.device == "cuda" else os.cpu_count() or 1


def in_process_of_its_own(places: Places) -> Start:
    """A cell's failure, or its memory, is not another's."""

    def start(cell: Cell) -> int:
        command: list[Any] = [sys.executable, "-m", "benchmarks.evidence", "--cell", cell.name, "--work", places.work]
        command += ["--device", places.device, *(["--prose", *places.prose] if places.prose else [])]
        threads = {"OMP_NUM_THREADS": "1"} if places.device == "cpu" else {}
        return subprocess.run(list(map(str, command)), env=os.environ | threads).returncode

    return start


def run_table(cells: Callable[[], Iterable[Cell]], start: Start, num_workers: int) -> list[Cell]:
    """Run what has no result yet, and ask the table again until it has nothing new.

    Cells run in the table's order, except that the first that needs a teacher comes first: others would wait for it.

    Returns:
        cells that failed.
    """
    failed: list[Cell] = []
    while True:
        pending = [cell for cell in dict.fromkeys(cells()) if not cell.file.exists() and cell not in failed]
        if not pending:
            for cell in failed:
                say(f"failed: {cell.name}")
            return failed
        ordered, pool = in_order(pending), ThreadPoolExecutor(num_workers)
        try:
            failed += [cell for cell, code in zip(ordered, pool.map(start, ordered), strict=True) if code]
        finally:
            pool.shutdown(cancel_futures=True)  # after Ctrl-C nothing new starts


def in_order(cells: list[Cell]) -> list[Cell]:
    """The first cell of each teacher, then all others in their order."""
    first = {(cell.corpus, cell.teacher): cell for cell in reversed(cells) if cell.teacher != "none"}
    makers = [cell for cell in cells if cell in first.values()]
    others = [cell for cell in cells if cell not in makers]
    # The makers take the workers one by one, between cells that need no teacher.
    plain = [cell for cell in others if cell.teacher == "none"]
    mixed = [cell for pair in zip(makers, plain, strict=False) for cell in pair]
    return [*mixed, *(cell for cell in (*makers, *others) if cell not in mixed)]
