"""Several command lines in one process, so that what plugins register is forgotten with it and imports happen once.

    python -m tests.plugins.run_commands '[{"argv": [...], "interrupt_at": 4}, ...]'

prints a JSON list with the exit code and the output of each. `interrupt_at` sends SIGTERM in that 0-based step of training.
"""

from __future__ import annotations

import contextlib
import io
import json
import signal
import sys
from typing import Any
from unittest import mock

from cocomix.cli.main import main
from cocomix.data.order import windows_of_step
from cocomix.training import trainer


def run(argv: list[str], interrupt_at: int | None = None) -> tuple[int, str]:
    """The exit code and what was said."""

    def windows(seed: int, step: int, *sizes: int) -> Any:
        if step == interrupt_at:
            signal.raise_signal(signal.SIGTERM)
        return windows_of_step(seed, step, *sizes)

    said = io.StringIO()
    with (
        contextlib.redirect_stdout(said),
        contextlib.redirect_stderr(said),
        mock.patch.object(trainer, "windows_of_step", windows),
    ):
        try:
            code = main(argv)
        except SystemExit as stop:
            code = int(stop.code or 0)
    return code, said.getvalue()


if __name__ == "__main__":
    print(json.dumps([run(**command) for command in json.loads(sys.argv[1])]))
