"""`cocomix compare RUN...`: training runs side by side.

Tables need no torch; figures load matplotlib, and only with --output.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, ClassVar

import tyro

from cocomix.base import artifacts
from cocomix.base.command import CommandConfig
from cocomix.base.errors import CocomixError
from cocomix.base.kinds import COMPARISON
from cocomix.base.progress import say
from cocomix.tools.compare.comparison import compare_groups
from cocomix.tools.compare.runs import Group, TrainingRun, read_groups
from cocomix.tools.compare.text import comparison_text

RESULT_NAME = "comparison.json"


@dataclass(frozen=True)
class CompareConfig(CommandConfig):
    """Which runs to compare, and where to write the result."""

    runs: Annotated[tyro.conf.Positional[tuple[str, ...]], tyro.conf.arg(metavar="RUN...")]
    """Folders made by `cocomix train`, finished or not. Runs that differ only in their seed form a group; name=RUN,RUN names
    a group of your own."""
    baseline: str | None = None
    """Run or group with which the others are compared; by default the first."""
    output: Path | None = None
    """Folder for `comparison.html`, `comparison.json` and figures as PNG; by default nothing is written."""
    json: bool = False
    """Print JSON instead of tables."""
    overwrite: bool = False
    """Replace an earlier comparison in the output folder."""

    example: ClassVar[str] = "cocomix compare runs/ntp runs/cocomix --output runs/comparison"
    common: ClassVar[Sequence[str]] = ("runs", "baseline", "output", "json", "overwrite")
    opens: ClassVar[str] = "comparison.html"

    def __post_init__(self) -> None:
        if not self.runs:
            raise CocomixError("no runs are given; name the folders of one or more training runs")


def compare(config: CompareConfig) -> dict[str, Any] | str:
    """Compare training runs; returns the result as JSON, or as text for a terminal.

    Raises:
        CocomixError: a folder is not a training run, or two runs can't be compared.
    """
    groups = read_groups(config.runs)
    result = compare_groups(groups, config.baseline)
    if config.output is not None:
        _write(config.output, groups, result, overwrite=config.overwrite)
    return result if config.json else comparison_text(result)


def _write(output: Path, groups: list[Group], result: dict[str, Any], *, overwrite: bool) -> None:
    settings = {
        "baseline": result["baseline"],
        "runs": {group.name: [artifacts.fingerprint_of_json(_content(run)) for run in group.runs] for group in groups},
    }
    with artifacts.begin(output, COMPARISON, settings, overwrite=overwrite) as finished:
        if finished:
            say(f"{output} already holds this comparison")
            return
        from cocomix.tools.compare.page import write_page  # loads matplotlib

        artifacts.write_json(output / RESULT_NAME, result)
        write_page(output, result)
        artifacts.finish(output)


def _content(run: TrainingRun) -> list[Any]:
    return [run.settings, run.curve, run.consumed, run.is_finished]
