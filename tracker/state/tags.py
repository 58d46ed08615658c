"""What tags mean, by the word of several members whom the tracker asked. No I/O; time in seconds is passed in.

A meaning counts when AGREE members, each told by the tracker to ask upstream, say the same. One member's word counts
for itself alone. What nobody was asked for changes nothing. For when upstream is away, what agents remember counts
where AGREE of them remember the same. Who says something else than two who were asked before and after it, lied.

An answer counts from the moment at which upstream was asked for it, so an answer that was long on its way never
replaces one that was asked for later.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass, field

AGREE = 2
"""Members who must say the same."""

LEASE = 5.0
"""Seconds in which an agent that was told to ask upstream must answer; then another one is told to."""

PAUSE = 5.0
"""Seconds for which the last known meaning answers after upstream failed AGREE members, before it is asked again."""

MOST_HEARD = 8
"""Members whose word on one name is remembered, the last."""


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
    """When the first lease of the agents that ask upstream ends; None: nobody asks, do not wait."""


@dataclass(frozen=True, slots=True)
class _Lease:
    member: str
    asked: float
    until: float


@dataclass(slots=True)
class _Record:
    known: Meaning | None = None
    """What AGREE members said."""
    leases: dict[str, _Lease] = field(default_factory=dict)
    """Agent -> that it was told to ask."""
    heard: OrderedDict[str, Meaning] = field(default_factory=OrderedDict)
    """Member -> what it said when it was asked."""
    remembered: OrderedDict[str, Meaning] = field(default_factory=OrderedDict)
    """Member -> what it says of its own accord that upstream told it once."""
    failed: dict[str, float] = field(default_factory=dict)
    """Member -> when upstream failed it."""
    gone: dict[str, float] = field(default_factory=dict)
    """Member -> when upstream told it that there is no such name."""

    def active(self, now: float) -> list[_Lease]:
        """Those who are to answer yet."""
        return [lease for lease in self.leases.values() if lease.until > now]


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
        """All names whose meaning is known, or was told by somebody."""
        for name, record in self._records.items():
            told = record.known or next(reversed(record.heard.values()), None)
            if told is not None:
                yield name, told

    def ask(self, name: str, agent: str, member: str, *, ttl: float, since: float, now: float) -> Verdict:
        """*agent* wants to know, since time *since*, a meaning of *name* no older than *ttl* seconds."""
        record = self._record(name)
        known = record.known
        if known is not None and now - known.told > self._keep:
            known = record.known = None
        # From the question on, not from the answer: what upstream said late may have been old when it came.
        for meaning in (known, record.heard.get(member)):
            if meaning is not None and (now - meaning.asked <= ttl or meaning.told >= since):
                return Verdict(meaning, fresh=True)
        failed = [at for at in record.failed.values() if at >= since or (known is not None and now - at < PAUSE)]
        if record.failed.get(member, float("-inf")) >= since or len(failed) >= AGREE:
            return Verdict(known)
        active = record.active(now)
        mine = record.leases.get(agent)
        if mine is not None and mine.until > now and since >= mine.asked:
            return Verdict(known, resolve=True)  # it asks again: its last answer was lost
        others = {lease.member for lease in active}
        votes = self._votes(record, now - max(ttl, 0.0), since)
        if member not in others and max(votes.values(), default=0) + len(others) < AGREE:
            record.leases = {a: lease for a, lease in record.leases.items() if now - lease.asked <= 2 * LEASE}
            record.leases[agent] = _Lease(member, now, now + LEASE)
            self._asking.setdefault(agent, set()).add(name)
            return Verdict(known, resolve=True)
        return Verdict(known, until=min((lease.until for lease in active), default=None))

    def told(self, name: str, agent: str, digest: str, media_type: str, size: int, now: float) -> list[str]:
        """Upstream told *agent*, if it was asked; returns the members that are proven to have lied."""
        record = self._records.get(name)
        lease = record.leases.pop(agent, None) if record is not None else None
        self._answered(name, agent)
        if record is None or lease is None:
            return []
        said = Meaning(digest, media_type, size, lease.asked, now)
        record.heard.pop(lease.member, None)
        record.heard[lease.member] = said
        while len(record.heard) > MOST_HEARD:
            record.heard.popitem(last=False)
        record.failed.pop(lease.member, None)
        record.gone.clear()
        if not self._agree(record, record.heard, said):
            return []
        same = [meaning.asked for meaning in record.heard.values() if meaning.digest == digest]
        return [
            member
            for member, meaning in record.heard.items()
            if meaning.digest != digest and min(same) < meaning.asked and meaning.told < max(same)
        ]

    def remember(self, name: str, member: str, digest: str, media_type: str, size: int, age: float, now: float) -> bool:
        """*member* heard a meaning *age* seconds ago. True: AGREE members say so, and nothing newer is known."""
        if age > self._keep:
            return False
        at = now - max(0.0, age)
        record = self._record(name)
        said = Meaning(digest, media_type, size, at, at)
        record.remembered.pop(member, None)
        record.remembered[member] = said
        while len(record.remembered) > MOST_HEARD:
            record.remembered.popitem(last=False)
        return self._agree(record, record.remembered, said)

    def failed(self, name: str, agent: str, *, gone: bool, now: float) -> None:
        """Upstream did not tell *agent*, if it was asked; *gone*: it said that there is no such name."""
        record = self._records.get(name)
        lease = record.leases.pop(agent, None) if record is not None else None
        self._answered(name, agent)
        if record is None or lease is None:
            return
        record.failed[lease.member] = now
        if gone and (record.known is None or lease.asked >= record.known.asked):
            record.gone[lease.member] = now
            record.heard.pop(lease.member, None)
            if len(record.gone) >= AGREE:
                record.known = None
        for told in (record.failed, record.gone):
            while len(told) > MOST_HEARD:
                del told[next(iter(told))]

    def forget(self, agent: str) -> list[str]:
        """*agent* is gone; returns the names that it was to ask for."""
        freed = []
        for name in self._asking.pop(agent, ()):
            record = self._records.get(name)
            if record is not None and record.leases.pop(agent, None) is not None:
                freed.append(name)
        return freed

    # -- inside -----------------------------------------------------------------------------------

    def _votes(self, record: _Record, asked: float, told: float) -> dict[str, int]:
        """Digest -> how many said so who were asked since *asked*, or answered since *told*."""
        votes: dict[str, int] = {}
        for meaning in record.heard.values():
            if meaning.asked >= asked or meaning.told >= told:
                votes[meaning.digest] = votes.get(meaning.digest, 0) + 1
        return votes

    def _agree(self, record: _Record, words: OrderedDict[str, Meaning], said: Meaning) -> bool:
        """Whether AGREE members say what *said* says; then it is known, unless something newer is."""
        same = sorted((meaning.asked for meaning in words.values() if meaning.digest == said.digest), reverse=True)
        if len(same) < AGREE:
            return False
        # As old as the older of those who agree: one of them may repeat what the tag meant before.
        asked = same[AGREE - 1]
        if record.known is not None and record.known.asked > asked and record.known.digest != said.digest:
            return False
        if record.known is not None and record.known.digest == said.digest:
            asked = max(asked, record.known.asked)
        record.known = Meaning(said.digest, said.media_type, said.size, asked, said.told)
        return True

    def _answered(self, name: str, agent: str) -> None:
        names = self._asking.get(agent)
        if names is not None:
            names.discard(name)
            if not names:
                del self._asking[agent]

    def _record(self, name: str) -> _Record:
        record = self._records.get(name)
        if record is None:
            record = self._records[name] = _Record()
            while len(self._records) > self._cap:
                self._records.popitem(last=False)
        else:
            self._records.move_to_end(name)
        return record
