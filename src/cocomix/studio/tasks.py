"""Work of the page that others must not wait for."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

from nicegui import background_tasks


class Latest:
    """Runs a piece of work when asked; asked again while it runs, once more afterwards, however often.

    Args:
        work: reads what it needs when it starts.
    """

    def __init__(self, work: Callable[[], Awaitable[None]]) -> None:
        self._work = work
        self._is_running = self._is_wanted = False
        self._idle = asyncio.Event()
        self._idle.set()

    def ask(self) -> None:
        """Run the work, or run it again after the run that is going on."""
        self._is_wanted = True
        if not self._is_running:
            self._is_running = True
            self._idle.clear()
            background_tasks.create(self._run())

    async def done(self) -> None:
        """Wait until nothing asked for is left to do."""
        await self._idle.wait()

    async def _run(self) -> None:
        try:
            while self._is_wanted:
                self._is_wanted = False
                await self._work()
        finally:
            self._is_running = False
            self._idle.set()
