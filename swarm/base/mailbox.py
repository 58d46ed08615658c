"""Calls from threads to the event loop: one wakeup for all that wait."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable


class Mailbox:
    """Calls that are to be made on *loop*, in the order in which they were put."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._calls: deque[Callable[[], object]] = deque()
        self._woken = False

    def put(self, call: Callable[[], object]) -> None:
        """Have *call* made soon. From any thread; of no effect once the loop is closed."""
        self._calls.append(call)
        if not self._woken:
            self._woken = True
            try:
                self._loop.call_soon_threadsafe(self._deliver)
            except RuntimeError:  # the loop is closed: nobody waits for anything
                self._calls.clear()

    def _deliver(self) -> None:
        self._woken = False  # before the first call is taken: whoever puts one later wakes the loop again
        while self._calls:
            self._calls.popleft()()
