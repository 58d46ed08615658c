"""Simulated time as an event loop: where nothing is left to do now, it is at once as late as the next timer says."""

from __future__ import annotations

import asyncio
from typing import Any


class Stuck(Exception):
    """Nothing is left to happen, and what was waited for has not come."""


class Clock(asyncio.BaseEventLoop):
    """See the module. The tracker's alarms and waves are timers of the running loop, and run on it as they are.

    What goes wrong in a callback ends the run: a loop would write it down and go on.
    """

    def __init__(self, start: float = 1000.0) -> None:
        super().__init__()
        self._now = start
        self._selector = self  # what a loop waits on between two timers
        self._wrong: BaseException | None = None

    def time(self) -> float:
        """Simulated seconds."""
        return self._now

    def select(self, timeout: float | None) -> list[object]:
        """Instead of waiting for *timeout* seconds, they have passed. Raises Stuck, and what went wrong."""
        if self._wrong is not None:
            raise self._wrong
        if timeout is None:
            raise Stuck("nothing is left to happen")
        self._now += timeout
        return []

    def call_exception_handler(self, context: dict[str, Any]) -> None:
        """Something went wrong in a callback."""
        self._wrong = self._wrong or context.get("exception") or Stuck(context["message"])

    def _process_events(self, events: list[object]) -> None:
        """There are none: nothing comes from outside."""
