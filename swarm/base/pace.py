"""Bytes per second: a token bucket, and who waits for it. Those that somebody waits for come first."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from typing import Protocol

BURST = 0.25
"""Seconds' worth of bytes that may pass at once after a pause."""

TURN = 10
"""Of so many grants one goes to those that nobody waits for: who gets nothing at all loses its claims."""


class Timer(Protocol):
    """Something that is to happen."""

    def cancel(self) -> None:
        """It shall not."""


class Time(Protocol):
    """A clock with an alarm: an event loop, or a test's."""

    def time(self) -> float:
        """Seconds."""

    def call_later(self, delay: float, callback: Callable[[], None]) -> Timer:
        """Call *callback* after *delay* seconds."""


class Bucket:
    """*rate* bytes per second; 0: no bound. It may be overdrawn by one grant, which is paid back. No clock."""

    def __init__(self, rate: float, now: float) -> None:
        self.rate = rate
        self._tokens = rate * BURST
        self._at = now

    def set(self, rate: float, now: float) -> None:
        """Another rate from *now* on; what was saved under the old one is kept up to the new burst."""
        self._fill(now)
        self.rate = rate
        self._tokens = min(self._tokens, rate * BURST)

    def take(self, count: int, now: float) -> None:
        """*count* bytes passed."""
        self._fill(now)
        self._tokens -= count

    def wait(self, now: float) -> float:
        """Seconds until the next bytes may pass; 0: now."""
        if not self.rate:
            return 0.0
        self._fill(now)
        return max(0.0, -self._tokens / self.rate)

    def _fill(self, now: float) -> None:
        self._tokens = min(self.rate * BURST, self._tokens + (now - self._at) * self.rate)
        self._at = now


class Pace:
    """What passes here keeps to a rate, in the order in which it came; *low* comes after the rest."""

    def __init__(self, rate: float = 0.0, time: Time | None = None) -> None:
        """*time*: None: the running loop's."""
        self._time = time
        self._bucket: Bucket | None = None
        self._first_rate = rate
        self._waiting: tuple[deque[_Turn], deque[_Turn]] = (deque(), deque())
        self._timer: Timer | None = None
        self._grants = 0

    @property
    def rate(self) -> float:
        """Bytes per second; 0: no bound."""
        return self._bucket.rate if self._bucket is not None else self._first_rate

    def set(self, rate: float) -> None:
        """Another rate, for those who wait as well."""
        if self._bucket is None:
            self._first_rate = rate
            return
        self._bucket.set(rate, self._now())
        self._give()

    async def take(self, count: int, *, low: bool = False) -> None:
        """*count* bytes came: return when the next may be asked for."""
        if not self.rate:
            return
        if self._bucket is None:
            self._bucket = Bucket(self._first_rate, self._now())
        now = self._now()
        if not any(self._waiting) and not self._bucket.wait(now):
            self._bucket.take(count, now)
            return
        turn = _Turn(count)
        self._waiting[low].append(turn)
        self._arm()
        try:
            await turn.come
        finally:
            turn.over = True  # cancelled, perhaps: it takes nothing when its turn comes

    def _now(self) -> float:
        return self._clock.time()

    @property
    def _clock(self) -> Time:
        return self._time or asyncio.get_running_loop()

    def _arm(self) -> None:
        if self._timer is None and self._bucket is not None:
            self._timer = self._clock.call_later(self._bucket.wait(self._now()), self._give)

    def _give(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        assert self._bucket is not None
        while any(self._waiting) and not self._bucket.wait(self._now()):
            urgent, low = self._waiting
            self._grants += 1
            turn = (low if low and (not urgent or self._grants % TURN == 0) else urgent).popleft()
            if not turn.over:
                self._bucket.take(turn.count, self._now())
                turn.come.set_result(None)
        if any(self._waiting):
            self._arm()


class _Turn:
    """Somebody who waits."""

    def __init__(self, count: int) -> None:
        self.count = count
        self.come: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.over = False
