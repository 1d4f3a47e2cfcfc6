"""Ctrl-C and SIGTERM as requests: work stops where its state is consistent and exits with the signal's exit code."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable
from types import FrameType, TracebackType
from typing import Any

SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Stopped(KeyboardInterrupt):
    """Work stopped after a signal, with its state saved.

    Args:
        signal_number: number of the signal.
        message: message for the user.
    """

    def __init__(self, signal_number: int, message: str) -> None:
        super().__init__(message)
        self.exit_code = 128 + signal_number


class StopRequest:
    """Within its block, records Ctrl-C and SIGTERM instead of letting them interrupt.

    Args:
        insists: whether a second Ctrl-C interrupts at once. Under `torchrun` it must not, because the terminal and
            `torchrun` both send one.

    `signal_number` is the number of the first signal, 0 before any. Outside the main thread signals can't be caught and
    keep their handlers.
    """

    def __init__(self, *, insists: bool = True) -> None:
        self.signal_number = 0
        self._insists = insists
        self._before: dict[signal.Signals, Callable[[int, FrameType | None], Any] | int | None] = {}

    def __enter__(self) -> StopRequest:
        if threading.current_thread() is threading.main_thread():
            self._before = {number: signal.signal(number, self._note) for number in SIGNALS}
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self.signal_number and self._insists and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.signal_number = self.signal_number or number
