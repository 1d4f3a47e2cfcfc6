"""A comparison as text for a terminal."""

from __future__ import annotations

import io
import shutil
from collections.abc import Mapping
from typing import Any

import rich.table
from rich import box
from rich.console import Console
from rich.text import Text

from cocomix.tools.compare.words import Table, headline, tables

#: Where the width of a terminal is not known, as in a file.
DEFAULT_WIDTH = 160


def comparison_text(result: Mapping[str, Any], width: int | None = None) -> str:
    """All tables, and how to read them.

    Args:
        result: as `compare_groups` returns it.
        width: columns; None: the terminal's.
    """
    columns = width or shutil.get_terminal_size((DEFAULT_WIDTH, 24)).columns
    console = Console(file=io.StringIO(), width=columns, color_system=None)
    for table in tables(result):
        console.print(Text(f"\n{table.title}"))
        console.print(_drawn(table))
    console.print(Text(headline(result)))
    for note in result["notes"]:
        console.print(Text(note))
    output = console.file
    assert isinstance(output, io.StringIO)
    return "\n".join(line.rstrip() for line in output.getvalue().splitlines())


def _drawn(table: Table) -> rich.table.Table:
    drawn = rich.table.Table(box=box.SIMPLE_HEAD)
    for number, heading in enumerate(table.headings):
        drawn.add_column(Text(heading), justify="left" if number == 0 else "right")
    for row in table.rows:
        drawn.add_row(*map(Text, row))  # names are a user's: no markup
    return drawn
