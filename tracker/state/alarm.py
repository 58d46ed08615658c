"""All deadlines of the tracker behind one timer: whoever sets one is called when it is due."""

from __future__ import annotations

import asyncio
import heapq
import logging
from collections.abc import Callable, Hashable
from dataclasses import dataclass

log = logging.getLogger("shoal.tracker")


@dataclass(slots=True)
class _Entry:
    when: float
    queued: float
    """Time of the entry's place in the heap: not later than *when*."""
    call: Callable[[], None]


class Alarm:
    """Deadlines by key, in seconds of the loop's clock. Postponing one costs nothing."""

    def __init__(self, lag: Callable[[float], None] = lambda _seconds: None) -> None:
        """*lag* is told how many seconds late the timer came."""
        self._lag = lag
        self._loop = asyncio.get_running_loop()
        self._entries: dict[Hashable, _Entry] = {}
        self._heap: list[tuple[float, int, Hashable]] = []
        self._order = 0
        self._timer: asyncio.TimerHandle | None = None
        self._timer_at = 0.0

    def now(self) -> float:
        """The time in which deadlines are said."""
        return self._loop.time()

    def set(self, key: Hashable, when: float | None, call: Callable[[], None]) -> None:
        """Call *call* once at *when*; replaces what was set for *key*. None: forget it."""
        if when is None:
            self._entries.pop(key, None)
            return
        entry = self._entries.get(key)
        if entry is not None and entry.queued <= when:
            entry.when, entry.call = when, call
            return
        self._entries[key] = _Entry(when, when, call)
        self._push(when, key)
        self._arm()

    def close(self) -> None:
        """Forget every deadline."""
        self._entries.clear()
        self._heap.clear()
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _push(self, when: float, key: Hashable) -> None:
        self._order += 1
        heapq.heappush(self._heap, (when, self._order, key))

    def _arm(self) -> None:
        if not self._heap:
            return
        first = self._heap[0][0]
        if self._timer is not None:
            if self._timer_at <= first:
                return
            self._timer.cancel()
        self._timer_at = first
        self._timer = self._loop.call_at(first, self._ring)

    def _ring(self) -> None:
        self._timer = None
        now = self._loop.time()
        self._lag(max(0.0, now - self._timer_at))
        while self._heap and self._heap[0][0] <= now:
            queued, _, key = heapq.heappop(self._heap)
            entry = self._entries.get(key)
            if entry is None or entry.queued != queued:
                continue
            if entry.when > now:
                entry.queued = entry.when
                self._push(entry.when, key)
                continue
            del self._entries[key]
            try:
                entry.call()
            except Exception:
                log.exception("alarm.failed", extra={"fields": {"key": str(key)}})
        self._arm()
