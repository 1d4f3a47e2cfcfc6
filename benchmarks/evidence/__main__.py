"""The command line: run a table or a cell, then refresh the pages."""

from __future__ import annotations

import argparse
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch

from benchmarks.evidence import __doc__ as description
from benchmarks.evidence.cells import Cell, parse_cell
from benchmarks.evidence.corpora import Places
from benchmarks.evidence.page import refresh
from benchmarks.evidence.run import forget, repeated, run
from benchmarks.evidence.tables import TABLES
from cocomix.base.artifacts import write_json
from cocomix.base.errors import CocomixError
from cocomix.base.host import tune_process
from cocomix.base.progress import say


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.evidence",
        description=description,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--table", choices=list(TABLES), help="run the cells of a table that have no result yet")
    parser.add_argument("--cell", help="run one: CORPUS/TEACHER/SIZE/VARIANT/TOKENS/SEED")
    parser.add_argument(
        "--only", nargs="*", metavar="PART", help="with --table: only the cells whose names contain one of these"
    )
    parser.add_argument(
        "--again", action="store_true", help="run a cell that has a result once more, from its first step, and compare"
    )
    parser.add_argument(
        "--page",
        action="store_true",
        help="refresh the tables and figures of docs/evidence*.md from the stored results",
    )
    parser.add_argument("--work", type=Path, default=Path("runs/evidence"), help="folder for everything that is made")
    parser.add_argument("--english", type=Path, help="folder with train.parquet and validation.parquet")
    parser.add_argument("--task-data", type=Path, help="folder with the files of LAMBADA and BLiMP")
    arguments = parser.parse_args()
    tune_process()
    places = Places(arguments.work, arguments.english, arguments.task_data)
    try:
        if arguments.cell:
            return run_cell(parse_cell(arguments.cell), places, again=arguments.again)
        if arguments.table:
            failed = run_table(arguments, TABLES[arguments.table]())
            refresh()
            return failed
    except CocomixError as error:
        say(f"error: {error}")
        return 1
    if arguments.page:
        refresh()
    return 0


def run_cell(cell: Cell, places: Places, *, again: bool) -> int:
    """Run one, and write or compare its file. On one thread: sums of several differ in their last bits."""
    torch.set_num_threads(1)
    stored = cell.result()
    if stored is not None and not again:
        say(f"{cell.name} has its result already; --again runs it again and compares")
        return 0
    if again:
        forget(cell, places)
    result = run(cell, places)
    if stored is None:
        cell.file.parent.mkdir(parents=True, exist_ok=True)
        write_json(cell.file, result)
        say(f"{cell.name}: {result['validation_loss']:.4f}")
        return 0
    new, old = repeated(result), repeated(stored)
    different = sorted(name for name in new.keys() | old.keys() if new.get(name) != old.get(name))
    say(f"{cell.name}: " + (f"differs in {', '.join(different)}" if different else "equal to its stored result"))
    return 1 if different else 0


def run_table(arguments: argparse.Namespace, cells: list[Cell]) -> int:
    """Each cell in a process of its own, so that a failure does not stop the others."""
    failed = []
    for cell in dict.fromkeys(cell.key for cell in cells):
        if cell.file.exists() or (arguments.only and not any(part in cell.name for part in arguments.only)):
            continue
        command: list[Any] = [
            sys.executable,
            "-m",
            "benchmarks.evidence",
            "--cell",
            cell.name,
            "--work",
            arguments.work,
        ]
        for name in ("english", "task_data"):
            if getattr(arguments, name) is not None:
                command += [f"--{name.replace('_', '-')}", getattr(arguments, name)]
        if subprocess.run(list(map(str, command))).returncode:
            failed.append(cell.name)
    for name in failed:
        say(f"failed: {name}")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
