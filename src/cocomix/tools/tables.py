"""`rich` tables as text for standard output."""

from __future__ import annotations

import io
import shutil

from rich.console import Console, RenderableType

#: Width of output to a file or a pipe, where nothing should wrap.
UNLIMITED_COLUMNS = 240


def rendered_text(*parts: RenderableType, width: int | None = None) -> str:
    """Plain lines as `rich` prints them, `width` columns wide; by default as wide as the terminal."""
    width = width or shutil.get_terminal_size((UNLIMITED_COLUMNS, 24)).columns
    console = Console(file=io.StringIO(), width=width, highlight=False)
    for part in parts:
        console.print(part)
    lines = console.file.getvalue().splitlines()  # type: ignore[attr-defined]
    return "\n".join(line.rstrip() for line in lines)
