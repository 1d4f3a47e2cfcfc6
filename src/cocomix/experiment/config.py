"""The configuration of `cocomix run`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, ClassVar

import tyro

from cocomix.base.command import CommandConfig
from cocomix.base.errors import require_at_least


@dataclass(frozen=True)
class RunConfig(CommandConfig):
    """Which experiment, and which part of it."""

    file: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="FILE")]
    """YAML file of an experiment, or the name of one that comes with cocomix, such as demo or paper-69m."""
    output: Path | None = None
    """Folder of the experiment, with a folder for each stage; by default the file's `output`, or runs/ and its name."""
    text: tuple[Path, ...] | None = None
    """Files or folders in place of the file's `text`."""
    seed: int | None = None
    """Seed in place of the file's."""
    only: tuple[str, ...] = ()
    """Run only these stages, or these sections of the file."""
    start: Annotated[str | None, tyro.conf.arg(name="from")] = None
    """Run this stage and all after it."""
    dry_run: bool = False
    """Only show the stages: what is done, and what the rest costs if the file's `plan` names a device."""
    print: bool = False
    """Only print the file, to start your own from."""
    overwrite: bool = False
    """Make the stages that run anew, where an earlier run left other results or the same."""

    example: ClassVar[str] = "cocomix run demo"
    common: ClassVar[Sequence[str]] = (
        "file",
        "output",
        "text",
        "seed",
        "only",
        "start",
        "dry_run",
        "print",
        "overwrite",
    )

    def __post_init__(self) -> None:
        require_at_least(0, self, "seed")

    def check_files(self) -> None:
        from cocomix.experiment.stages import read_experiment  # which reads the command line's own modules

        if not self.print:
            experiment = read_experiment(self)
            if not self.dry_run:
                experiment.check()
