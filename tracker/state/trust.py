"""Which agents were proven wrong, and for how long nobody relies on them. No I/O; time is passed in."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

REMEMBERED = 200
"""Entries of the record of blame that the page shows."""

MOST = 10_000
"""Quarantines at once: more than any cluster has agents to spare."""


@dataclass(frozen=True, slots=True)
class Entry:
    """One line of the record of blame. *at* in seconds of the clock passed in."""

    at: float
    agent: str
    name: str
    what: str
    """"quarantined", "suspect"."""
    reason: str


class Trust:
    """Quarantines by agent key. *length*: of one, in seconds."""

    def __init__(self, length: float) -> None:
        self._length = length
        self._until: dict[str, float] = {}
        self.record: deque[Entry] = deque(maxlen=REMEMBERED)

    def quarantine(self, agent: str, name: str, reason: str, now: float) -> float:
        """Rely on *agent* no more for a while; returns until when."""
        self.record.append(Entry(now, agent, name, "quarantined", reason))
        until = self._until[agent] = now + self._length
        while len(self._until) > MOST:
            del self._until[next(iter(self._until))]
        return until

    def suspect(self, agent: str, name: str, reason: str, now: float) -> None:
        """Put on record that *agent* may hold a corrupt copy."""
        self.record.append(Entry(now, agent, name, "suspect", reason))

    def until(self, agent: str, now: float) -> float:
        """When the quarantine of *agent* ends; 0: it is in none."""
        until = self._until.get(agent, 0.0)
        if until and until <= now:
            del self._until[agent]
            return 0.0
        return until

    @property
    def anybody(self) -> bool:
        """Whether anybody may be in quarantine."""
        return bool(self._until)

    def quarantined(self, now: float) -> dict[str, float]:
        """All quarantines: agent -> until when."""
        return {agent: until for agent, until in self._until.items() if until > now}


class Backoffs:
    """Upstream hosts that asked us to wait. *most*: seconds that are believed; *cap*: hosts."""

    def __init__(self, most: float = 900.0, cap: int = 1000) -> None:
        self._most = most
        self._cap = cap
        self._until: dict[str, tuple[float, int]] = {}
        self.serial = 0
        """Grows with every new or longer backoff."""

    def tell(self, host: str, seconds: float, now: float) -> bool:
        """*host* asked for *seconds*. True: that is news of at least a second."""
        until = now + min(self._most, max(0.0, seconds))
        if until <= self._until.get(host, (now, 0))[0] + 1.0:
            return False
        self.serial += 1
        self._until.pop(host, None)
        self._until[host] = (until, self.serial)
        while len(self._until) > self._cap:
            del self._until[next(iter(self._until))]
        return True

    def since(self, serial: int, now: float) -> list[tuple[str, float]]:
        """(host, seconds left) of what was told after *serial*."""
        return [(host, until - now) for host, (until, told) in self._until.items() if told > serial and until > now]
