"""Who is named as the holder of a window: the policy by which windows spread like a tree. No I/O; time is passed in.

A window that one agent holds is asked for by thousands. Each holder is named to a few askers at a time; each of them
becomes a holder that is named to a few others. Who found nobody with room to spare is told as soon as there is.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

FANOUT = 8
"""Askers to whom a holder is named for one window within one period."""

READ_FANOUT = 32
"""The same for readers of ranges. They fetch a piece of it and never hold it, so that no tree grows by them: with
FANOUT, each fifth of them waited for two seconds, and the next ones until they went upstream."""

WHOLE_FANOUT = 128
"""Windows for which a holder of the whole blob is named within one period, over all askers."""

PERIOD = 2.0
"""Seconds after which those to whom a holder was named have fetched the window, or never will."""

KEPT = 32
"""Holders remembered per window, the newest first: older ones have had their turn."""

NAMED = 3
"""Holders named per window."""

WINDOWS = 64
"""Windows per answer for which holders are named..."""

SCANNED = 256
"""... among so many that are looked at."""

HUNGRY = 8
"""Windows for which an asker is remembered who found no holder with room to spare."""


@dataclass(slots=True)
class _Turn:
    """How often one holder was named within the current period."""

    agent: str
    named: int = 0
    read: int = 0
    """To readers of ranges."""
    since: float = float("-inf")

    def room(self, now: float, most: int, *, reads: bool = False) -> bool:
        if now - self.since >= PERIOD:
            self.named = self.read = 0
            self.since = now
        return (self.read if reads else self.named) < most


@dataclass(frozen=True, slots=True)
class Asking:
    """Who asks. *missing*: windows in order of urgency. *whole*: some who hold all of them, best first."""

    agent: str
    zone: str
    missing: Iterable[int]
    whole: tuple[str, ...] = ()
    reads: bool = False
    """Ranges: it will not hold what it fetches."""


@dataclass(slots=True)
class Offers:
    """The holders of each window of one blob, and whose turn it is. Holds hints: *holds* says whether they are true."""

    wake_at: float | None = None
    """When `due` has somebody to wake; None: nobody waits for room."""
    _turns: dict[int, deque[_Turn]] = field(default_factory=dict)
    _full: dict[int, float] = field(default_factory=dict)
    """Window -> until when none of its holders has room."""
    _whole: dict[str, _Turn] = field(default_factory=dict)
    _hungry: dict[int, dict[str, None]] = field(default_factory=dict)

    def gained(self, agent: str, windows: int) -> list[str]:
        """*agent* holds these windows now (bit w: window w); returns whom to tell of it."""
        woken: list[str] = []
        while windows:
            bit = windows & -windows
            windows ^= bit
            window = bit.bit_length() - 1
            turns = self._turns.setdefault(window, deque(maxlen=KEPT))
            turns.appendleft(_Turn(agent))
            self._full.pop(window, None)
            woken += self._take(window, FANOUT)
        return woken

    def name(
        self, asking: Asking, now: float, holds: Callable[[str, int], bool], zone_of: Callable[[str], str]
    ) -> dict[int, list[str]]:
        """Window -> at most NAMED holders for it, the own zone first, then who was named least recently."""
        named: dict[int, list[str]] = {}
        refused = 0
        for count, window in enumerate(asking.missing):
            if count >= SCANNED or len(named) >= WINDOWS:
                break
            chosen = self._choose(asking, window, now, holds, zone_of)
            if chosen:
                named[window] = chosen
            elif refused < HUNGRY:
                refused += 1
                self._hungry.setdefault(window, {})[asking.agent] = None
                self.wake_at = min(self.wake_at or now + PERIOD, now + PERIOD)
        return named

    def due(self, now: float) -> list[str]:
        """Whom to tell that there is room again."""
        if self.wake_at is None or now < self.wake_at:
            return []
        woken: list[str] = []
        for window in list(self._hungry):
            if turns := self._turns.get(window):
                woken += self._take(window, FANOUT * len(turns))
            elif self._whole:
                woken += self._take(window, FANOUT)
        self.wake_at = now + PERIOD if self._hungry else None
        return woken

    def _choose(
        self, asking: Asking, window: int, now: float, holds: Callable[[str, int], bool], zone_of: Callable[[str], str]
    ) -> list[str]:
        turns = self._turns.get(window) if asking.reads or self._full.get(window, 0.0) <= now else None
        most = READ_FANOUT if asking.reads else FANOUT
        near: list[_Turn] = []
        far: list[_Turn] = []
        if turns:
            for turn in list(turns):
                if not holds(turn.agent, window):
                    turns.remove(turn)
                elif turn.agent != asking.agent and turn.room(now, most, reads=asking.reads):
                    (near if zone_of(turn.agent) == asking.zone else far).append(turn)
                    if len(near) == NAMED:
                        break
            if not near and not far and not asking.reads:
                self._full[window] = min((turn.since + PERIOD for turn in turns), default=0.0)
        chosen = [*near, *far][:NAMED]
        if chosen and turns:  # the others are there in case the first one fails
            chosen[0].named += not asking.reads
            chosen[0].read += asking.reads
            turns.remove(chosen[0])
            turns.append(chosen[0])
        found = [turn.agent for turn in chosen]
        for key in asking.whole:
            if len(found) == NAMED:
                break
            turn = self._whole.setdefault(key, _Turn(key))
            if key not in found and turn.room(now, WHOLE_FANOUT):
                turn.named += not found
                found.append(key)
        return found

    def _take(self, window: int, count: int) -> list[str]:
        hungry = self._hungry.get(window)
        if not hungry:
            return []
        taken = list(hungry)[:count]
        for agent in taken:
            del hungry[agent]
        if not hungry:
            del self._hungry[window]
        return taken
