"""Processor time of start-up: importing the package, and printing the help."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import asdict
from typing import Any

from cocomix.tools.bench.report import Section, seconds
from cocomix.tools.bench.timing import spread_of

REPETITIONS = 7
_COMMANDS = ("cocomix --help", "cocomix recipes", "cocomix train --batch-size 0")
_RUN = "from cocomix.cli.main import main\ntry: main({words!r})\nexcept SystemExit: pass"
_CODE = {"import cocomix": "import cocomix"} | {name: _RUN.format(words=name.split()[1:]) for name in _COMMANDS}
NAMES = ("the interpreter alone", *_CODE)


def measure(repetitions: int = REPETITIONS) -> dict[str, Any]:
    """CPU seconds of whole processes, including the interpreter's start; a first round is not counted."""
    times: dict[str, list[float]] = {name: [] for name in NAMES}
    for repetition in range(repetitions + 1):
        for name, values in times.items():
            before = os.times()
            subprocess.run([sys.executable, "-c", _CODE.get(name, "")], check=True, capture_output=True)
            after = os.times()
            if repetition:
                values.append(
                    after.children_user - before.children_user + after.children_system - before.children_system
                )
    return {"cpu_seconds": {name: asdict(spread_of(values)) for name, values in times.items()}}


def describe(result: dict[str, Any]) -> Section:
    """A section with a row for each command; the last one is refused."""
    rows = [[f"`{name}`" if name in _CODE else name, seconds(result["cpu_seconds"][name])] for name in NAMES]
    return Section("Start-up", "Processor time of a whole process.", ["", "time"], rows)
