"""The configuration of `cocomix demo`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from cocomix.base.command import CommandConfig
from cocomix.base.errors import require_at_least
from cocomix.tools.demo.sizes import SizeName


@dataclass(frozen=True)
class DemoConfig(CommandConfig):
    """One demo."""

    output: Path
    """Folder of the demo: a folder for each stage, `report.html`, `summary.json` and figures."""
    size: SizeName = "default"
    """smoke: under a minute; default: at most 15 minutes on two cores; large: about two hours, with baselines."""
    text: tuple[Path, ...] | None = None
    """Text, Markdown, JSON-lines and Parquet files or folders; by default the running Python's standard library."""
    seed: int = 0
    """Seed of all stages."""
    overwrite: bool = False
    """Replace an earlier demo in the output folder."""

    example: ClassVar[str] = "cocomix demo --output runs/demo"
    common: ClassVar[Sequence[str]] = ("output", "size", "text", "seed", "overwrite")

    def __post_init__(self) -> None:
        require_at_least(0, self, "seed")

    def settings(self) -> dict[str, Any]:
        return {"size": self.size, "seed": self.seed}
