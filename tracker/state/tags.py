"""What tags mean, by the word of several members whom the tracker asked. No I/O; time in seconds is passed in.

A meaning counts when AGREE members, chosen by chance among all and told to ask upstream, say the same. One member's
word counts for itself alone. What nobody was asked for changes nothing. For when upstream is away, what agents
remember counts where AGREE of them remember the same. Who says something else than two who were asked before and after
it, lied.

An answer counts from the moment at which upstream was asked for it, so an answer that was long on its way never
replaces one that was asked for later.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, field

from swarm.protocol import wire

AGREE = 2
"""Members who must say the same."""

LEASE = 5.0
"""Seconds in which an agent that was told to ask upstream must answer; then another one is told to."""

PAUSE = 5.0
"""Seconds for which the last known meaning answers after upstream failed AGREE members, before it is asked again."""

MOST_HEARD = 8
"""Members whose word on one name is remembered, the last."""

MOST_PROOFS = 4
"""Signed words that are handed on with a meaning: AGREE, and some for where an agent's clock is wrong."""

PUSHED = 1.0
"""Seconds after which another one is chosen beside a chosen agent that has not answered: its word still counts."""

MOST_DECLINED = 4
"""Chosen agents that have not the right to ask, after which those who look the name up are told to ask themselves."""

MOST_OWN = 4_096
"""Names that are kept for one member, by lookups and by what it remembers: 12 MiB at the very most."""

Pick = Callable[[int, Collection[str]], Sequence[tuple[str, str]]]
"""So many (agent, member) by chance, one of each member, none of these members; fewer where there are not so many."""


def nobody(_count: int, _but: Collection[str]) -> Sequence[tuple[str, str]]:
    """A Pick that finds none: who looks up is told to ask."""
    return ()


@dataclass(frozen=True, slots=True)
class Meaning:
    """What a name meant. *asked*: when upstream was asked; *told*: when it was heard here."""

    digest: str
    media_type: str
    size: int
    asked: float
    told: float
    proofs: tuple[wire.Proof, ...] = ()
    """Signed words of those who said so."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """What an agent that asks is to do: take *known* (if *fresh*), ask upstream, or wait for *until*."""

    known: Meaning | None
    fresh: bool = False
    resolve: bool = False
    until: float | None = None
    """When the first lease of the agents that ask upstream ends; None: nobody asks, do not wait."""
    chosen: tuple[str, ...] = ()
    """Agents that are to be told to ask upstream."""


@dataclass(frozen=True, slots=True)
class _Lease:
    member: str
    asked: float
    until: float
    """Until then its word is waited for."""
    pushed: bool = False
    """It was told over its channel: what it looks up itself meanwhile waits for that answer, as everybody does."""

    def counts(self, now: float) -> bool:
        """Whether its word counts yet, however late."""
        return now - self.asked <= LEASE


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
    declined: dict[str, float] = field(default_factory=dict)
    """Member -> when it said that it has not the right to ask."""

    def active(self, now: float) -> list[_Lease]:
        """Those who are to answer yet."""
        return [lease for lease in self.leases.values() if lease.until > now]


class Meanings:
    """Names and their meanings. *keep*: seconds for which an unused one is remembered; *cap*: how many."""

    def __init__(self, keep: float, cap: int) -> None:
        self._keep = keep
        self._cap = cap
        self._records: OrderedDict[str, _Record] = OrderedDict()
        self._asking: dict[str, set[str]] = {}
        self._own: dict[str, OrderedDict[str, None]] = {}
        """Member -> the names that are kept for it, the oldest first."""

    def __len__(self) -> int:
        return len(self._records)

    def meanings(self) -> Iterator[tuple[str, Meaning]]:
        """All names whose meaning is known, or was told by somebody."""
        for name, record in self._records.items():
            told = record.known or next(reversed(record.heard.values()), None)
            if told is not None:
                yield name, told

    def ask(
        self, name: str, agent: str, member: str, *, ttl: float, since: float, now: float, pick: Pick = nobody
    ) -> Verdict:
        """*agent* wants to know, since time *since*, a meaning of *name* no older than *ttl* seconds.

        Those who are to ask upstream are chosen by *pick*: whoever looks a name up first would be one member's to
        arrange. Only where there are not enough to choose from, or those lack the right, who looks up is told to ask.
        """
        record = self._record(name, member)
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
        mine = record.leases.get(agent)
        if mine is not None and not mine.pushed and mine.counts(now) and since >= mine.asked:
            return Verdict(known, resolve=True)  # it asks again: its last answer was lost
        chosen = self._choose(record, name, agent, member, since, now, ttl, pick)
        if agent in chosen:
            return Verdict(known, resolve=True, chosen=tuple(other for other in chosen if other != agent))
        until = min((lease.until for lease in record.active(now)), default=None)
        return Verdict(known, until=until, chosen=tuple(chosen))

    def told(
        self,
        name: str,
        agent: str,
        digest: str,
        media_type: str,
        size: int,
        now: float,
        proof: wire.Proof | None = None,
    ) -> list[str]:
        """Upstream told *agent*, if it was asked; returns the members that are proven to have lied."""
        record = self._records.get(name)
        lease = record.leases.pop(agent, None) if record is not None else None
        self._answered(name, agent)
        if record is None or lease is None:
            return []
        said = Meaning(digest, media_type, size, lease.asked, now, () if proof is None else (proof,))
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
        record = self._record(name, member)
        self._keep_for(member, name)
        said = Meaning(digest, media_type, size, at, at)
        record.remembered.pop(member, None)
        record.remembered[member] = said
        while len(record.remembered) > MOST_HEARD:
            record.remembered.popitem(last=False)
        return self._agree(record, record.remembered, said)

    def failed(self, name: str, agent: str, *, gone: bool, now: float, declined: bool = False) -> None:
        """Upstream did not tell *agent*, if it was asked; *gone*: it said that there is no such name.

        *declined*: it has not the right to ask: that says nothing of upstream, and somebody else is asked.
        """
        record = self._records.get(name)
        lease = record.leases.pop(agent, None) if record is not None else None
        self._answered(name, agent)
        if record is None or lease is None:
            return
        if declined:
            record.declined[lease.member] = now
            while len(record.declined) > 2 * MOST_DECLINED:
                del record.declined[next(iter(record.declined))]
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

    def _choose(
        self, record: _Record, name: str, agent: str, member: str, since: float, now: float, ttl: float, pick: Pick
    ) -> list[str]:
        """Who is to ask upstream now, so that AGREE may agree; they have their leases."""
        others = {lease.member for lease in record.active(now)}
        votes = self._votes(record, now - max(ttl, 0.0), since)
        lacking = AGREE - max(votes.values(), default=0) - len(others)
        if lacking <= 0:
            return []
        record.leases = {a: lease for a, lease in record.leases.items() if now - lease.asked <= 2 * LEASE}
        record.declined = {who: at for who, at in record.declined.items() if now - at < self._keep}
        found: list[tuple[str, str]] = []
        if len(record.declined) < MOST_DECLINED:
            asked = {lease.member for lease in record.leases.values() if lease.counts(now)}
            voted = {
                who for who, word in record.heard.items() if word.asked >= now - max(ttl, 0.0) or word.told >= since
            }
            found += pick(lacking, asked | voted | record.declined.keys())
        if len(found) < lacking and member not in others | {its for _, its in found}:
            found.append((agent, member))
        for one, its in found:
            pushed = one != agent
            record.leases[one] = _Lease(its, now, now + (PUSHED if pushed else LEASE), pushed)
            self._asking.setdefault(one, set()).add(name)
        return [one for one, _ in found]

    def _keep_for(self, member: str, name: str) -> None:
        """*name* is kept for *member*; what was kept for it first goes where that is too much."""
        own = self._own.setdefault(member, OrderedDict())
        own[name] = None
        own.move_to_end(name)
        while len(own) > MOST_OWN:
            old, _ = own.popitem(last=False)
            record = self._records.get(old)
            if record is not None:
                record.remembered.pop(member, None)
                others = any(lease.member != member for lease in record.leases.values())
                if record.known is None and not (record.heard or record.remembered or others):
                    del self._records[old]
        while len(self._own) > self._cap:
            del self._own[next(iter(self._own))]

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
        same_words = [word for word in words.values() if word.digest == said.digest]
        proofs = tuple(proof for word in same_words[-MOST_PROOFS:] for proof in word.proofs)
        record.known = Meaning(said.digest, said.media_type, said.size, asked, said.told, proofs)
        return True

    def _answered(self, name: str, agent: str) -> None:
        names = self._asking.get(agent)
        if names is not None:
            names.discard(name)
            if not names:
                del self._asking[agent]

    def _record(self, name: str, member: str) -> _Record:
        record = self._records.get(name)
        if record is None:
            record = self._records[name] = _Record()
            self._keep_for(member, name)
            while len(self._records) > self._cap:
                self._records.popitem(last=False)
        else:
            self._records.move_to_end(name)
        return record
