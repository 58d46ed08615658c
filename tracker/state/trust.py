"""Which members were proven wrong, and for how long nobody relies on them; and who has delivered. No I/O, no clock.

A member is who can be told apart by something that costs: a pod's address, or its proven identity. Another port, or
another session, is the same member.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass

REMEMBERED = 200
"""Entries of the record of blame that the page shows."""

WITNESSES = 8
"""Members whose word on one upstream is remembered, the last."""

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
    """Quarantines and credit by member. *length*: of a quarantine, in seconds. *member_of*: the member of an agent."""

    def __init__(self, length: float, member_of: Callable[[str], str]) -> None:
        self._length = length
        self._member_of = member_of
        self._until: dict[str, tuple[float, str]] = {}
        self._credit: OrderedDict[str, None] = OrderedDict()
        self.record: deque[Entry] = deque(maxlen=REMEMBERED)

    def quarantine(self, agent: str, name: str, reason: str, now: float) -> float:
        """Rely on the member of *agent* no more for a while; returns until when."""
        self.record.append(Entry(now, agent, name, "quarantined", reason))
        member = self._member_of(agent)
        self._credit.pop(member, None)
        until = now + self._length
        self._until[member] = (until, agent)
        while len(self._until) > MOST:
            del self._until[next(iter(self._until))]
        return until

    def suspect(self, agent: str, name: str, reason: str, now: float) -> None:
        """Put on record that *agent* may hold a corrupt copy."""
        self.record.append(Entry(now, agent, name, "suspect", reason))

    def until(self, agent: str, now: float) -> float:
        """When the quarantine of *agent* ends; 0: it is in none."""
        if not self._until:
            return 0.0
        member = self._member_of(agent)
        until, _ = self._until.get(member, (0.0, ""))
        if until and until <= now:
            del self._until[member]
            return 0.0
        return until

    @property
    def anybody(self) -> bool:
        """Whether anybody may be in quarantine."""
        return bool(self._until)

    def quarantined(self, now: float) -> dict[str, float]:
        """All quarantines: the agent that was found out -> until when."""
        return {agent: until for until, agent in self._until.values() if until > now}

    def deliver(self, agents: Iterable[str]) -> None:
        """What *agents* brought in was confirmed by the sha256 of somebody else."""
        for agent in agents:
            member = self._member_of(agent)
            self._credit[member] = None
            self._credit.move_to_end(member)
        while len(self._credit) > MOST:
            self._credit.popitem(last=False)

    def proven(self, agent: str) -> bool:
        """Whether the member of *agent* has delivered before."""
        return bool(self._credit) and self._member_of(agent) in self._credit


class Budgets:
    """Bytes of hashes that each member may have told of blobs that nobody else confirmed. *most*: of one member."""

    def __init__(self, most: int = 16 * 1024 * 1024) -> None:
        self._most = most
        self._spent: OrderedDict[str, OrderedDict[str, int]] = OrderedDict()

    def spend(self, member: str, digest: str, amount: int) -> list[str]:
        """*member* told *amount* bytes about *digest*; returns the blobs that are to go for it, the oldest first."""
        spent = self._spent.setdefault(member, OrderedDict())
        self._spent.move_to_end(member)
        spent.pop(digest, None)
        spent[digest] = amount
        over: list[str] = []
        while sum(spent.values()) > self._most and len(spent) > 1:
            over.append(spent.popitem(last=False)[0])
        while len(self._spent) > MOST:
            self._spent.popitem(last=False)
        return over


class Backoffs:
    """Upstream hosts that asked us to wait: told to all when two members say so.

    Who was asked to wait does so itself. Its word alone would let one member keep all others from a registry.
    *most*: seconds that are believed; *cap*: hosts.
    """

    def __init__(self, most: float = 300.0, cap: int = 1000) -> None:
        self._most = most
        self._cap = cap
        self._until: dict[str, tuple[float, int]] = {}
        self._told: OrderedDict[str, dict[str, float]] = OrderedDict()
        """Host -> member -> until when it is to be left alone by that member's word."""
        self.serial = 0
        """Grows with every new or longer backoff."""

    def tell(self, host: str, member: str, seconds: float, now: float) -> bool:
        """*member* says that *host* asked for *seconds*. True: that is news of at least a second."""
        told = {who: until for who, until in self._told.pop(host, {}).items() if until > now}
        told[member] = now + min(self._most, max(0.0, seconds))
        self._told[host] = dict(list(told.items())[-WITNESSES:])
        while len(self._told) > self._cap:
            self._told.popitem(last=False)
        until = sorted(told.values())[-2] if len(told) > 1 else 0.0  # as long as two say so
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
