"""The result of a case as a section, for the terminal and for a page."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from rich.table import Table

from cocomix.base.formats import format_bytes
from cocomix.tools.tables import rendered_text


@dataclass(frozen=True)
class Section:
    """One table with its explanation."""

    title: str
    text: str
    """Sizes and results, in sentences."""
    head: Sequence[str]
    rows: Sequence[Sequence[str]]

    def as_text(self) -> str:
        """The section for the terminal."""
        table = Table(*self.head, box=None, pad_edge=False)
        for row in self.rows:
            table.add_row(*row)
        return f"{self.title}\n{self.text}\n{rendered_text(table)}"

    def as_markdown(self) -> str:
        """The section for a page."""
        lines = [self.head, ["---"] * len(self.head), *self.rows]
        table = "\n".join("| " + " | ".join(cells) + " |" for cells in lines)
        return f"## {self.title}\n\n{self.text}\n\n{table}"


def seconds(spread: dict[str, float]) -> str:
    """Median and quartiles of times, in seconds or milliseconds."""
    factor, unit = (1, "s") if spread["median"] >= 1 else (1000, "ms")
    median, low, high = (_digits(spread[name] * factor) for name in ("median", "low", "high"))
    return f"{median} ({low} to {high}) {unit}"


def ratio(spread: dict[str, float]) -> str:
    """Median and quartiles of ratios."""
    return f"{spread['median']:.2f} ({spread['low']:.2f} to {spread['high']:.2f})"


def memory(value: float) -> str:
    return format_bytes(value)


def _digits(value: float) -> str:
    return f"{value:.3g}" if value < 1000 else f"{value:,.0f}"
