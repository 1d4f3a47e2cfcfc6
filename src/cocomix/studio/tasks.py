"""Work that runs in the background of the page."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

from nicegui import background_tasks


class Coalesced:
    """Runs work on request; any number of requests during a run lead to one more run after it.

    Args:
        work: reads its inputs when it starts.
    """

    def __init__(self, work: Callable[[], Awaitable[None]]) -> None:
        self._work = work
        self._is_running = self._is_wanted = False
        self._idle = asyncio.Event()
        self._idle.set()

    def request(self) -> None:
        """Run the work now, or once more after the current run."""
        self._is_wanted = True
        if not self._is_running:
            self._is_running = True
            self._idle.clear()
            background_tasks.create(self._run())

    async def done(self) -> None:
        """Wait until all requested work is done."""
        await self._idle.wait()

    async def _run(self) -> None:
        try:
            while self._is_wanted:
                self._is_wanted = False
                await self._work()
        finally:
            self._is_running = False
            self._idle.set()
