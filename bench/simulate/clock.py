"""Simulated time as an event loop: where nothing is left to do now, it is at once as late as the next timer says."""

from __future__ import annotations

import asyncio
from collections.abc import Callable


class Stuck(Exception):
    """Nothing is left to happen, or the time is up, and what was waited for has not come."""


class Clock(asyncio.BaseEventLoop):
    """See the module. The tracker's alarms and waves are timers of the running loop, and run on it as they are."""

    def __init__(self, start: float = 1000.0) -> None:
        super().__init__()
        self._now = start
        self._selector = self  # what a loop waits on between two timers

    def time(self) -> float:
        """Simulated seconds."""
        return self._now

    def select(self, timeout: float | None) -> list[object]:
        """Instead of waiting for *timeout* seconds, they have passed."""
        if timeout is None:
            raise Stuck("nothing is left to happen")
        self._now += timeout
        return []

    def _process_events(self, events: list[object]) -> None:
        """There are none: nothing comes from outside."""

    def run_until(self, done: asyncio.Future[None], begin: Callable[[], None]) -> None:
        """Call *begin*, and let time pass until *done*. Raises Stuck."""
        self.call_soon(begin)
        self.run_until_complete(done)
