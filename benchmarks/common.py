"""What the scripts here share: their options, how a result is stored, how a table is written and put on a page.

A table stands on a page between the marks `<!-- NAME -->` and `<!-- end of NAME -->`; the sentences around it are written by
hand.
"""

from __future__ import annotations

import argparse
import os
import platform
import re
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from cocomix.base.artifacts import read_json, write_json
from cocomix.base.errors import CocomixError
from cocomix.base.formats import format_signed

RESULTS = Path(__file__).parent / "results"
ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"
_BLOCK = re.compile(r"(<!-- (?P<name>[^>]+) -->\n).*?(<!-- end of (?P=name) -->)", re.DOTALL)


def options(name: str, description: str | None, *folders: str) -> argparse.ArgumentParser:
    """Parser of a script.

    Args:
        name: of the script and of its result.
        description: its docstring.
        folders: options that name a folder; `demo` is that of a finished demo.
    """
    parser = argparse.ArgumentParser(
        prog=f"python -m benchmarks.{name}",
        description=description,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    defaults = {"demo": Path("runs/demo"), "work": Path(f"runs/{name}")}
    for folder in folders:
        parser.add_argument(f"--{folder}", type=Path, default=defaults[folder], help="folder; default: %(default)s")
    output = RESULTS.relative_to(ROOT) / f"{name}.json"
    parser.add_argument("--output", type=Path, default=output, help="JSON file of the result; default: %(default)s")
    return parser


def store(output: Path, name: str, **result: Any) -> None:
    """Write a result with the command that gives it and the machine that gave it."""
    machine = {"cores": os.cpu_count(), "python": platform.python_version()}
    output.parent.mkdir(parents=True, exist_ok=True)
    write_json(output, {"command": f"python -m benchmarks.{name}", "machine": machine, **result})


def stored(name: str) -> dict[str, Any]:
    """A committed result."""
    return dict(read_json(RESULTS / f"{name}.json"))


def untimed(value: Any, times: frozenset[str]) -> Any:
    """A JSON value without its times, to compare two runs."""
    if isinstance(value, dict):
        return {key: untimed(item, times) for key, item in value.items() if key not in times}
    return [untimed(item, times) for item in value] if isinstance(value, list) else value


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Markdown; an empty first head leaves the corner free."""
    return "\n".join("| " + " | ".join(cells) + " |" for cells in (head, ["---"] * len(head), *rows))


def losses(values: Sequence[float]) -> str:
    return ", ".join(f"{value:.3f}" for value in values)


def mean(values: Sequence[float]) -> str:
    """With the standard deviation of several."""
    spread = f" ± {statistics.stdev(values):.3f}" if len(values) > 1 else ""
    return f"{statistics.fmean(values):.3f}{spread}"


def signed(values: Sequence[float]) -> str:
    return ", ".join(map(format_signed, values))


def filled(text: str, blocks: Mapping[str, str]) -> str:
    """A page with its tables as they are now.

    Raises:
        CocomixError: the page has a mark of a table that is not among the blocks.
    """

    def block(found: re.Match[str]) -> str:
        if found["name"] not in blocks:
            raise CocomixError(f"no table is called {found['name']!r}")
        return f"{found[1]}{blocks[found['name']]}\n{found[3]}"

    return _BLOCK.sub(block, text)


def fill(page: Path, blocks: Mapping[str, str]) -> None:
    page.write_text(filled(page.read_text(encoding="utf-8"), blocks), encoding="utf-8")


def visible(text: str) -> str:
    """Text on one line."""
    shown = text.replace("\n", "⏎")
    return "".join(letter if letter.isprintable() else "·" for letter in shown)


def code(text: str) -> str:
    """Text as inline code; it may contain backticks."""
    shown = visible(text)
    fence = "``" if "`" in shown else "`"
    space = " " if "`" in shown or shown != shown.strip() else ""
    return f"{fence}{space}{shown}{space}{fence}"
