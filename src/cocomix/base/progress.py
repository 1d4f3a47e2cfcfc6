"""One live line for long work: what is done, how fast, and how long it will still take.

In a terminal it is a `rich` bar; elsewhere (logs, CI) it is an occasional plain line.
"""

from __future__ import annotations

import os
import sys
import time
from types import TracebackType

from rich.console import Console
from rich.progress import (
    BarColumn,
    Progress,
    TaskProgressColumn,
    TextColumn,
    TimeRemainingColumn,
)

PLAIN_LINE_EVERY_SECONDS = 15.0
#: As of a process that SIGPIPE ended.
EXIT_BROKEN_PIPE = 141


class ProgressLine:
    """Counts units of work, such as tokens, and shows their rate.

    Args:
        description: what is being done.
        total: number of units in all; None if unknown.
        unit: name of the units, in the plural.
        completed: units done by an earlier process, left out of the rate.
        shown: whether anything is shown; among several processes, only one should show it.
    """

    def __init__(
        self, description: str, total: int | None, unit: str = "tokens", completed: int = 0, *, shown: bool = True
    ) -> None:
        self._shown = shown
        self._description = description
        self._total = None if total is None else max(total, 1)
        self._unit = unit
        self._completed = completed
        self._completed_before = completed
        self._stats = ""
        self._started_seconds = time.monotonic()
        self._last_line_seconds = self._started_seconds
        self._console = Console(stderr=True)
        self._bar: Progress | None = None

    def __enter__(self) -> ProgressLine:
        if self._shown and self._console.is_terminal:
            self._bar = Progress(
                TextColumn("{task.description}"),
                BarColumn(bar_width=24),
                TaskProgressColumn(),
                TextColumn("{task.fields[rate]}"),
                TimeRemainingColumn(),
                TextColumn("{task.fields[stats]}"),
                console=self._console,
            )
            self._bar.start()
            self._task = self._bar.add_task(
                self._description, total=self._total, completed=self._completed, rate="", stats=""
            )
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.stop()
        elif kind is None and self._shown:
            self._print_line()

    def advance(self, units: int, **stats: float | int | str) -> None:
        """Count `units` more; `stats` replace the figures shown at the end of the line."""
        self._completed += units
        if stats:
            self._stats = "  ".join(f"{name} {_figure(value)}" for name, value in stats.items())
        if self._bar is not None:
            rate = f"{self._rate():,.0f} {self._unit}/s"
            self._bar.update(self._task, completed=self._completed, rate=rate, stats=self._stats)
        elif self._shown and time.monotonic() - self._last_line_seconds >= PLAIN_LINE_EVERY_SECONDS:
            self._print_line()

    def _rate(self) -> float:
        elapsed = time.monotonic() - self._started_seconds
        return (self._completed - self._completed_before) / max(elapsed, 1e-9)

    def _print_line(self) -> None:
        self._last_line_seconds = time.monotonic()
        rate = self._rate()
        total = left = ""
        if self._total is not None:
            left_seconds = (self._total - self._completed) / rate if rate > 0 else 0.0
            total, left = f"/{self._total:,}", f", {_duration(left_seconds)} left"
        self._console.print(
            f"{self._description}: {self._completed:,}{total} {self._unit}, {rate:,.0f} {self._unit}/s"
            f"{left}  {self._stats}".rstrip(),
            highlight=False,
            markup=False,
            soft_wrap=True,
        )


def say(message: str) -> None:
    """Print one line on standard error; standard output is for results.

    Under `torchrun` only the first process of each machine prints.
    """
    if os.environ.get("LOCAL_RANK", "0") == "0":
        Console(stderr=True).print(message, highlight=False, markup=False, soft_wrap=True)


def printed(result: str) -> int:
    """Print a result on standard output; returns the exit code."""
    try:
        print(result, flush=True)
    except BrokenPipeError:  # as in `cocomix recipes | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # so that Python's last flush at exit succeeds
        return EXIT_BROKEN_PIPE
    return 0


def _figure(value: float | int | str) -> str:
    return f"{value:.3f}" if isinstance(value, float) else str(value)


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"
