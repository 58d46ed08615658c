"""The clock of the last byte that came from peers. It reports; it decides nothing. Time is passed in."""

from __future__ import annotations

STALL = 4.0
"""Seconds without a byte from any peer after which missing windows are asked from upstream again."""

FEW, MANY = 8, 64
"""Windows that are named at once, at least and at most: few where it has just become quiet, twice as many each second
that it stays so, and many where they are known to be lost. Eight each second kept a node at a third of what upstream
gave."""


class Stalls:
    """See the module. *now*: seconds of any monotonic clock."""

    def __init__(self, now: float) -> None:
        self._moved = now
        self._received: int | None = None
        self.windows: tuple[int, ...] = ()
        """Windows that nobody delivers, as of the last look."""

    def moved(self, now: float) -> None:
        """Something came, or there is nothing to wait for."""
        self._moved = now

    def quiet(self, now: float) -> float:
        """Seconds since something came."""
        return now - self._moved

    def restless(self, now: float) -> bool:
        """Whether it has been quiet for so long that bytes below a piece must be looked at."""
        if self.quiet(now) < STALL / 2:
            self._received = None
            return False
        return True

    def received(self, count: int, now: float) -> bool:
        """*count* bytes have come from peers, also of unfinished pieces. Whether that is more than at the last look."""
        more = self._received is not None and count > self._received
        first, self._received = self._received is None, count
        if more:
            self._moved = now
        return more or first

    def look(self, waiting: tuple[int, ...], now: float, lost: tuple[int, ...] = ()) -> bool:
        """Bring `windows` up to date: *waiting*, if it has been quiet for too long. Whether that is new.

        *lost*: windows that are known not to come, though others do.
        """
        stalled = lost[:MANY] or waiting[: self._most(now)]
        if self.quiet(now) >= STALL / 2 and not stalled:
            return False
        changed, self.windows = stalled != self.windows, stalled
        return changed

    def _most(self, now: float) -> int:
        """How many windows may be named because it is quiet."""
        beyond = self.quiet(now) - STALL
        return min(MANY, FEW << min(8, int(beyond))) if beyond >= 0 else 0
