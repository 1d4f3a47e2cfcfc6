"""The command line: run a table or a cell, list what a table would run, refresh the pages."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from pathlib import Path

import torch

from benchmarks.evidence import __doc__ as description
from benchmarks.evidence import copying, dictionaries
from benchmarks.evidence.cells import Cell, parse_cell
from benchmarks.evidence.corpora import CORPORA, Places
from benchmarks.evidence.jobs import in_process_of_its_own, num_workers, run_table
from benchmarks.evidence.page import refresh
from benchmarks.evidence.rows import ROWS
from benchmarks.evidence.run import run_cell
from benchmarks.evidence.sizes import REGIMES, TEACHERS
from benchmarks.evidence.tables import TABLES, Part, listing
from cocomix.base.errors import CocomixError
from cocomix.base.host import tune_process
from cocomix.base.progress import say


def main(words: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.evidence",
        description=description,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--table", choices=list(TABLES), help="run the cells of a table that have no result yet")
    parser.add_argument("--size", choices=list(REGIMES), default="nano", help="default: %(default)s")
    for name, known in (("corpus", CORPORA), ("teacher", TEACHERS), ("row", ROWS)):
        parser.add_argument(f"--{name}", nargs="+", default=(), choices=list(known), help="of a table, only these")
    parser.add_argument("--list", action="store_true", help="with --table: name the cells instead, with their FLOPs")
    parser.add_argument("--cell", help="run one: SIZE/CORPUS/TEACHER/ROW/PERCENT/RATE/SEED")
    parser.add_argument("--again", action="store_true", help="with --cell: from its first step, and compare")
    parser.add_argument("--dictionaries", action="store_true", help="read and steer students of several dictionaries")
    parser.add_argument("--copying", action="store_true", help="measure what finished runs copy from their windows")
    parser.add_argument("--page", action="store_true", help="refresh the tables and figures of docs/evidence*.md")
    parser.add_argument("--work", type=Path, default=Path("runs/evidence"), help="folder for everything that is made")
    parser.add_argument("--prose", type=Path, nargs="+", default=[], help="files of text; validation* is held out")
    parser.add_argument("--device", choices=["cpu", "cuda"], help="default: cuda if there is any")
    arguments = parser.parse_args(words)
    tune_process()
    device = arguments.device or ("cuda" if torch.cuda.is_available() else "cpu")
    places = Places(arguments.work, tuple(arguments.prose), device)
    part = Part(arguments.size, arguments.corpus, arguments.teacher, arguments.row)
    failed = 0
    try:
        if arguments.cell:
            return run_cell(parse_cell(arguments.cell), places, again=arguments.again)
        if arguments.table:

            def cells() -> Iterator[Cell]:
                return TABLES[arguments.table](part)

            if arguments.list:
                say(listing(cells()))
                return 0
            failed = len(run_table(cells, in_process_of_its_own(places), num_workers(places)))
        if arguments.dictionaries:
            dictionaries.read_students(part, places)
        if arguments.copying:
            copying.read_students(part, places)
        if arguments.table or arguments.dictionaries or arguments.copying or arguments.page:
            refresh()
    except CocomixError as error:
        say(f"error: {error}")
        return 1
    except KeyboardInterrupt:
        say("stopped; the same command goes on from there")
        return 130
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
