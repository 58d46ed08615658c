"""How fast the threads that send may send, all together."""

from __future__ import annotations

import threading

from swarm.base.pace import Bucket

STEP = 1024 * 1024
"""Bytes that one connection sends at most before the next has its turn."""

LEAST_STEP = 16 * 1024
"""Bytes of a turn at the slowest rates: less costs more in calls than it is worth."""

TURNS = 20
"""Turns in a second, where there is a bound: so each of a few connections is heard of well within two seconds."""

BODIES = 8
"""Bodies on their way at once at most. What is traded is whole windows, and of eight each is whole sooner than of
sixteen: 100 nodes take 1.49 x the bound instead of 1.60 (bench/simulate)."""

URGENT_BODIES = 8
"""Bodies beside them that somebody waits for: readers of ranges do not queue behind windows."""

SHORT = 1024 * 1024
"""Bytes of such a body at most: of the longest piece. Whoever asks for more waits like all others."""

LEAST_RATE = 64 * 1024
"""Bytes per second that a body should have. Who gets less goes to another holder, and what it got was in vain."""


class Throttle:
    """Bytes per second of all connections together; 0: no bound. For any thread; time is passed in (monotonic)."""

    def __init__(self) -> None:
        self._bucket = Bucket(0.0, 0.0)
        self._lock = threading.Lock()

    def bodies(self, length: int, *, urgent: bool = False) -> int:
        """Bodies that may be on their way at once for one more, of *length* bytes, to go out beside them."""
        rate, most = self._bucket.rate, BODIES + URGENT_BODIES if urgent and length <= SHORT else BODIES
        return min(most, max(1, int(rate / LEAST_RATE))) if rate else most

    def set(self, rate: float, now: float) -> None:
        """Another rate from *now* on."""
        with self._lock:
            self._bucket.set(rate, now)

    def step(self, now: float) -> int:
        """Bytes that one connection may send now; 0: it must wait."""
        if not self._bucket.rate:
            return STEP
        with self._lock:
            rate = self._bucket.rate
            return 0 if self._bucket.wait(now) else min(STEP, max(LEAST_STEP, int(rate / TURNS)))

    def wait(self, now: float) -> float:
        """Seconds until somebody may send."""
        with self._lock:
            return self._bucket.wait(now)

    def took(self, count: int, now: float) -> None:
        """*count* bytes were sent."""
        if self._bucket.rate:
            with self._lock:
                self._bucket.take(count, now)
