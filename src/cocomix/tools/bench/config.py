"""The configuration of `cocomix bench`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Literal

from cocomix.base.command import CommandConfig
from cocomix.base.errors import CocomixError, require_at_least

CaseName = Literal["train", "head", "extract", "generate", "sae"]
SizeName = Literal["default", "smoke", "69m", "386m"]


@dataclass(frozen=True)
class BenchConfig(CommandConfig):
    """What to measure."""

    case: tuple[CaseName, ...] = ()
    """Cases to measure; by default all of them and the start-up time."""
    size: SizeName = "default"
    """`default`: sizes of the paper's smallest model, minutes per case. `smoke`: tiny sizes, to check that it runs. `69m`,
    `386m`: the paper's models and windows in bfloat16, for an accelerator; of train, extract and generate."""
    device: Literal["cpu", "cuda"] = "cpu"
    """Device to measure on."""
    threads: int = 1
    """Threads of torch; more than one only helps with as many idle cores."""
    repetitions: int | None = None
    """Rounds in which contestants take turns; by default the case's own number."""
    json: Path | None = None
    """File to write the result to."""

    example: ClassVar[str] = "cocomix bench --case train generate --json bench.json"
    common: ClassVar[Sequence[str]] = ("case", "size", "device", "threads", "repetitions", "json")

    def __post_init__(self) -> None:
        require_at_least(1, self, "repetitions")
        require_at_least(1, self, "threads", maximum=1024)

    def check_files(self) -> None:
        if self.json is not None and (self.json.is_dir() or not self.json.absolute().parent.is_dir()):
            raise CocomixError(f"--json {self.json} can't be written; give a file in a folder that exists")
