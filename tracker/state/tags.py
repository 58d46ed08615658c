"""What tags mean, asked upstream by one agent at a time. No I/O; time in seconds is passed in.

An answer counts from the moment at which upstream was asked for it, so an answer that was long on
its way never replaces one that was asked for later.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass, field

LEASE = 5.0
"""Seconds in which the agent that was told to ask upstream must answer; then another one is told to."""

PAUSE = 5.0
"""Seconds for which the last known meaning answers after upstream failed, before it is asked again."""


@dataclass(frozen=True, slots=True)
class Meaning:
    """What a name meant. *asked*: when upstream was asked; *told*: when it was heard here."""

    digest: str
    media_type: str
    size: int
    asked: float
    told: float


@dataclass(frozen=True, slots=True)
class Verdict:
    """What an agent that asks is to do: take *known* (if *fresh*), ask upstream, or wait for *until*."""

    known: Meaning | None
    fresh: bool = False
    resolve: bool = False
    until: float | None = None
    """When the lease of the agent that asks upstream ends; None: nobody asks, do not wait."""


@dataclass(slots=True)
class _Record:
    known: Meaning | None = None
    resolver: str = ""
    until: float = 0.0
    leases: dict[str, float] = field(default_factory=dict)
    """Agent -> when it was told to ask."""
    failed: float = float("-inf")


class Names:
    """Names and their meanings. *keep*: seconds for which an unused one is remembered; *cap*: how many."""

    def __init__(self, keep: float, cap: int) -> None:
        self._keep = keep
        self._cap = cap
        self._records: OrderedDict[str, _Record] = OrderedDict()
        self._asking: dict[str, set[str]] = {}

    def __len__(self) -> int:
        return len(self._records)

    def meanings(self) -> Iterator[tuple[str, Meaning]]:
        """All names whose meaning is known."""
        return ((name, record.known) for name, record in self._records.items() if record.known is not None)

    def ask(self, name: str, agent: str, *, ttl: float, since: float, now: float) -> Verdict:
        """*agent* wants to know, since time *since*, a meaning of *name* no older than *ttl* seconds."""
        record = self._record(name)
        known = record.known
        if known is not None and now - known.told > self._keep:
            known = record.known = None
        # From the question on, not from the answer: what upstream said late may have been old when it came.
        if known is not None and (now - known.asked <= ttl or known.told >= since):
            return Verdict(known, fresh=True)
        if record.failed >= since or (known is not None and now - record.failed < PAUSE):
            return Verdict(known)
        if record.resolver and record.until > now:
            if record.resolver == agent and since >= record.leases.get(agent, now):
                return Verdict(known, resolve=True)  # it asks again: its last answer was lost
            return Verdict(known, until=record.until)
        record.resolver, record.until = agent, now + LEASE
        record.leases = {a: at for a, at in record.leases.items() if now - at <= 2 * LEASE}
        record.leases[agent] = now
        self._asking.setdefault(agent, set()).add(name)
        return Verdict(known, resolve=True)

    def told(self, name: str, agent: str, digest: str, media_type: str, size: int, now: float) -> bool:
        """Upstream told *agent*. False: something asked for later is known already."""
        record = self._record(name)
        asked = record.leases.pop(agent, now - LEASE)
        self._answered(name, agent)
        if record.resolver == agent:
            record.resolver = ""
        return self._accept(record, Meaning(digest, media_type, size, asked, now))

    def remember(self, name: str, digest: str, media_type: str, size: int, age: float, now: float) -> bool:
        """An agent knows a meaning that is *age* seconds old. False: a newer one is known."""
        if age > self._keep:
            return False
        at = now - max(0.0, age)
        return self._accept(self._record(name), Meaning(digest, media_type, size, at, at))

    def failed(self, name: str, agent: str, *, gone: bool, now: float) -> None:
        """Upstream did not tell *agent*; *gone*: it said that there is no such name."""
        record = self._records.get(name)
        if record is None:
            return
        asked = record.leases.pop(agent, None)
        self._answered(name, agent)
        if record.resolver != agent:
            return
        record.resolver = ""
        record.failed = now
        if gone and record.known is not None and asked is not None and asked >= record.known.asked:
            record.known = None

    def forget(self, agent: str) -> list[str]:
        """*agent* is gone; returns the names that it was to ask for."""
        freed = []
        for name in self._asking.pop(agent, ()):
            record = self._records.get(name)
            if record is not None:
                record.leases.pop(agent, None)
                if record.resolver == agent:
                    record.resolver = ""
                    freed.append(name)
        return freed

    def _answered(self, name: str, agent: str) -> None:
        names = self._asking.get(agent)
        if names is not None:
            names.discard(name)
            if not names:
                del self._asking[agent]

    def _accept(self, record: _Record, meaning: Meaning) -> bool:
        if record.known is not None and record.known.asked > meaning.asked:
            return False
        record.known = meaning
        return True

    def _record(self, name: str) -> _Record:
        record = self._records.get(name)
        if record is None:
            record = self._records[name] = _Record()
            while len(self._records) > self._cap:
                self._records.popitem(last=False)
        else:
            self._records.move_to_end(name)
        return record
