"""Images that stay in the cluster: who keeps which, who takes over for one that is lost, and who lets go. Pure.

Soft state like all that a tracker knows, with two differences. Keepers remember what they keep and tell it to every
tracker, so that an order outlives the trackers. And since any member could tell that, an order carries a proof that
whoever made it had the token of those who order: members pass orders on, and make none up.
"""

from __future__ import annotations

import hashlib
import hmac
import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import msgspec
from msgspec import structs

from swarm.protocol import wire

MOST = 256
"""Images that a tracker knows orders for, those included that nobody keeps any more."""

PATIENCE = 60.0
"""Seconds for which a keeper that left may come back before another takes its place: a restart takes a few."""

ANSWERS = 30.0
"""Seconds within which an agent that was told says that it began; then another is asked."""

RETRY = 600.0
"""Seconds after which an agent that could not keep an image may be asked again."""

TRIES = 8
"""Agents that may fail within RETRY, beside as many as are wanted: what upstream does not have is not asked of all."""

REMEMBER = 3
"""Agents that are told that an image is kept no more, at least: they say so to keepers that were away."""

FORGET = 3600.0
"""Seconds for which a tracker knows that by itself."""

AHEAD = 300.0
"""Seconds by which the clock of whoever orders may be ahead: a serial of next year would beat all orders until then."""


def key_of(token: bytes) -> bytes:
    """The key under which orders are proven, of the token of those who order. Takes some 50 ms: proofs are seen by
    members, and no weak token should be found from them (RFC 7914)."""
    return hashlib.scrypt(token, salt=b"shoal keep", n=1 << 14, r=8, p=1, dklen=32)


def signed(keep: wire.Keep, key: bytes) -> wire.Keep:
    """*keep* with its proof."""
    return structs.replace(keep, proof=_proof(keep, key))


def genuine(keep: wire.Keep, key: bytes) -> bool:
    """Whether *keep* was signed under *key*."""
    return bool(key) and hmac.compare_digest(keep.proof, _proof(keep, key))


def _proof(keep: wire.Keep, key: bytes) -> bytes:
    said = (keep.image, keep.copies, keep.serial, keep.platform, keep.zone, keep.labels)
    return hmac.digest(key, msgspec.json.encode(said), "sha256")


class Candidate(NamedTuple):
    """An agent that keeps an image, or may. *state*: "" not yet, "told", "fetching", "whole"; "away": it may come back.

    *has*: it holds the image's manifest. Of one *member* one agent counts.
    """

    key: str
    name: str
    zone: str
    member: str
    state: str = ""
    has: bool = False


_RANK = {"whole": 0, "fetching": 1, "told": 2, "away": 3}


def choose(wanted: int, candidates: Iterable[Candidate]) -> tuple[list[Candidate], list[Candidate]]:
    """Who is to keep an image as well, and who is to let go, so that *wanted* members keep it.

    Zones come first, then who has it, then names: trackers that know the same choose the same. Nobody is to let go
    before as many as are wanted have it whole.
    """
    ranked = sorted(candidates, key=lambda one: (_RANK.get(one.state, 4), not one.has, one.name, one.key))
    firsts: dict[str, Candidate] = {}
    doubles = []
    for one in ranked:
        if one.state and one.member in firsts:
            doubles.append(one)
        elif one.state:
            firsts[one.member] = one
    keeping = list(firsts.values())
    free = [one for one in ranked if not one.state and one.member not in firsts]
    more: list[Candidate] = []
    while free and (len(keeping) + len(more) < wanted or (not more and wanted and _narrow(wanted, keeping, free))):
        found = _next([*keeping, *more], free)
        more.append(found)
        free = [one for one in free if one.member != found.member]
    stay: list[Candidate] = []
    left = [one for one in keeping if one.state == "whole"]
    while left and len(stay) < wanted:
        stay.append(_next(stay, left))
        left.remove(stay[-1])
    if len(stay) < wanted:
        return more, []
    zones = {one.zone for one in stay}
    wider = [one for one in keeping if one.state != "whole" and one.zone not in zones and len(zones) < wanted]
    return more, [one for one in (*keeping, *doubles) if one.state != "away" and one not in (*stay, *wider)]


def _next(chosen: Sequence[Candidate], others: Sequence[Candidate]) -> Candidate:
    """The first of *others* in the zone where fewest are chosen."""
    zones = Counter(one.zone for one in chosen)
    return min(others, key=lambda one: zones[one.zone])


def _narrow(wanted: int, keeping: Sequence[Candidate], free: Sequence[Candidate]) -> bool:
    """Whether those who keep it are in fewer zones than they could be."""
    zones = {one.zone for one in keeping}
    return len(zones) < wanted and any(one.zone not in zones for one in free)


def agreed(said: Iterable[tuple[str, str]]) -> str:
    """What two members at least say that an image means; "" if no two agree. *said*: (member, digest)."""
    members: dict[str, set[str]] = {}
    for member, digest in said:
        if digest:
            members.setdefault(digest, set()).add(member)
    best = max(members, key=lambda digest: (len(members[digest]), digest), default="")
    return best if best and len(members[best]) >= 2 else ""


class Held(msgspec.Struct, frozen=True, kw_only=True):
    """How far an order is, for people. *keepers*: node -> state; *failed*: node -> reason.

    *settled*: nothing more is going to happen by itself.
    """

    image: str
    platform: str
    copies: int
    whole: int
    serial: int
    settled: bool
    keepers: dict[str, str] = {}
    failed: dict[str, str] = {}
    digest: str = ""


class Who(NamedTuple):
    """An agent that says something."""

    key: str
    name: str
    zone: str
    member: str
    fits: bool = True
    """Whether it may keep this image: its zone, its node's labels, nobody doubts it."""
    has: bool = False


@dataclass(slots=True)
class Sent:
    """What an agent was told. *at*: when."""

    session: str
    order: wire.KeepHere
    at: float


@dataclass(slots=True)
class Entry:
    """One image. *quiet*: until then nobody is chosen, for others may have chosen already."""

    keep: wire.Keep
    since: float
    quiet: float
    digest: str = ""
    """What two of its keepers agreed that it means."""
    kept: dict[str, tuple[Who, wire.Kept]] = field(default_factory=dict)
    told: dict[str, tuple[str, float]] = field(default_factory=dict)
    """Agent that was told to keep it, and has not said that it does -> its name, when."""
    away: dict[str, tuple[Who, float]] = field(default_factory=dict)
    failed: dict[str, tuple[str, str, float]] = field(default_factory=dict)
    """Agent -> its name, the reason, when."""
    orders: dict[str, wire.KeepHere] = field(default_factory=dict)
    sent: dict[str, Sent] = field(default_factory=dict)
    short: bool = True
    """Somebody is missing, as of the last look."""
    idle: bool = False
    """The last look found nobody to do anything."""
    dirty: bool = True
    """Something has changed since the last look..."""
    next: float = math.inf
    """... and when to look again even if nothing does."""

    def take(self, keep: wire.Keep, now: float, quiet: float) -> bool:
        """A newer order for the same image counts from now on. Returns whether it is one."""
        if keep.serial <= self.keep.serial:
            return False
        self.keep, self.since, self.quiet, self.digest, self.dirty = keep, now, quiet, "", True
        self.told.clear()
        self.failed.clear()
        self.orders.clear()
        return True

    def state_of(self, key: str) -> str:
        """How far the agent is with this order; "" if it does not keep it."""
        if key not in self.kept:
            return "told" if key in self.told else ""
        said = self.kept[key][1]
        if said.state not in ("fetching", "whole"):
            return "told" if key in self.told else ""
        current = said.keep.serial == self.keep.serial and said.digest in ("", self.digest or said.digest)
        return said.state if current else "told"

    def whole(self) -> int:
        """Members that have all of it."""
        return len({who.member for key, (who, _) in self.kept.items() if self.state_of(key) == "whole"})

    def look(self, everybody: Iterable[Who], now: float, patience: float) -> None:
        """Decide who is to be told what, of all agents that are here."""
        for key in [key for key, (_, at) in self.told.items() if now - at >= ANSWERS]:
            self.failed[key] = (self.told.pop(key)[0], "it does not answer: is it of an older version?", now)
            self.sent.pop(key, None)
        for key in [key for key, (_, since) in self.away.items() if now - since >= patience]:
            del self.away[key]
        for key in [key for key, (_, _, at) in self.failed.items() if now - at >= RETRY]:
            del self.failed[key]
        self.digest = self.digest or agreed(
            (who.member, said.digest)
            for who, said in self.kept.values()
            if said.keep.serial == self.keep.serial and said.state in ("fetching", "whole")
        )
        here = list(everybody)
        self.orders = self._ending(here) if not self.keep.copies else self._keeping(here, now)

    def _ending(self, here: list[Who]) -> dict[str, wire.KeepHere]:
        """Nobody keeps it any more: told to who does, and to some who remember it."""
        end = wire.KeepHere(keep=self.keep, here=False)
        know = {
            key for key, (_, said) in self.kept.items() if said.keep.serial == self.keep.serial and said.state == "none"
        }
        orders = {key: end for key in self.kept if key not in know}
        others = [one for one in here if one.key not in self.kept]
        for one in sorted(others, key=lambda one: (one.name, one.key))[: max(0, REMEMBER - len(self.kept))]:
            orders[one.key] = end
        self.short, self.idle = False, not orders
        return orders

    def _keeping(self, here: list[Who], now: float) -> dict[str, wire.KeepHere]:
        candidates = [
            Candidate(one.key, one.name, one.zone, one.member, self.state_of(one.key), one.has)
            for one in here
            if one.fits and one.key not in self.failed
        ]
        present = {one.key for one in candidates}
        candidates += [
            Candidate(who.key, who.name, who.zone, who.member, "away")
            for who, _ in self.away.values()
            if who.key not in present
        ]
        more, less = choose(self.keep.copies, candidates)
        if now < self.quiet or len(self.failed) >= self.keep.copies + TRIES:
            more = []
        for one in (*more, *(one for one in candidates if one.state == "told")):
            self.told.setdefault(one.key, (one.name, now))
        take = wire.KeepHere(keep=self.keep, here=True, digest=self.digest)
        let_go = wire.KeepHere(keep=self.keep, here=False)
        orders = {key: take for key in present if self.state_of(key) == "told"}
        orders |= {one.key: let_go for one in less}
        enough = self.whole() >= self.keep.copies
        if enough:  # those that failed, or may not keep it any more
            orders |= {key: let_go for key in self.kept if key not in present}
        counted = [one for one in candidates if one.state]
        self.short = not enough
        self.idle = not more and all(one.state in ("whole", "away") for one in counted)
        return orders

    def wake_at(self, now: float, patience: float) -> float:
        """When it should be looked at again, if nothing happens before; infinity: never."""
        times = [at + ANSWERS for _, at in self.told.values()]
        times += [since + patience for _, since in self.away.values()]
        times += [one.at + ANSWERS for key, one in self.sent.items() if key in self.orders]
        if self.short:
            times += [at + RETRY for _, _, at in self.failed.values()]
            times.append(self.quiet)
        if not self.keep.copies:
            times.append(self.since + FORGET)
        return min((at for at in times if at > now), default=math.inf)


class Keeps:
    """All orders of one tracker. *patience*: see PATIENCE."""

    def __init__(self, patience: float = PATIENCE) -> None:
        self._patience = patience
        self._entries: dict[str, Entry] = {}
        self._pending: set[str] = set()
        """Agents for which there may be orders."""
        self.serial = 0
        """Grows with every change."""

    def __len__(self) -> int:
        """Images that somebody is to keep."""
        return sum(bool(entry.keep.copies) for entry in self._entries.values())

    def due_for_look(self, now: float, *, grown: bool = False, wider: bool = False) -> list[Entry]:
        """Those to look at. *grown*: there are more agents; *wider*: there are other zones."""
        return [one for one in self._entries.values() if one.dirty or one.next <= now or wider or (grown and one.short)]

    @property
    def short(self) -> int:
        """Images of which there are fewer whole copies than ordered."""
        return sum(entry.whole() < entry.keep.copies for entry in self._entries.values())

    def order(self, keep: wire.Keep, now: float) -> str:
        """Somebody orders *keep* here. Returns why it cannot be taken, as one line; "" if it was."""
        entry = self._entries.get(keep.name)
        if entry is not None and entry.keep.serial > keep.serial:
            return f"a newer order for {keep.image} is known: is the clock right where this one comes from?"
        if entry is None:
            entry = self._add(keep, now, now)
            if entry is None:
                return f"{MOST} images are kept already: let one go with --keep 0"
        entry.take(keep, now, now)
        self.serial += 1
        return ""

    def told(self, who: Who, said: Iterable[wire.Kept], now: float) -> None:
        """The agent *who* says all that it keeps; every order of it is genuine."""
        named = set()
        for one in said:
            entry = self._entries.get(one.keep.name)
            if entry is None:
                entry = self._add(one.keep, now, now + self._patience)
                if entry is None:
                    continue
            entry.take(one.keep, now, now + self._patience)
            named.add(one.keep.name)
            entry.dirty = True
            entry.kept[who.key] = (who, one)
            entry.away.pop(who.key, None)
            if one.keep.serial == entry.keep.serial:
                entry.told.pop(who.key, None)
                if one.state in ("fetching", "whole"):
                    entry.failed.pop(who.key, None)
                if one.state == "failed":
                    entry.failed.setdefault(who.key, (who.name, one.error[:300], now))
        for name, entry in self._entries.items():
            if name not in named and entry.kept.pop(who.key, None) is not None:
                entry.told.pop(who.key, None)
                entry.dirty = True
        self.serial += 1

    def left(self, key: str, now: float) -> bool:
        """The agent *key* is gone; it may come back for a while. Returns whether that matters."""
        matters = False
        for entry in self._entries.values():
            entry.sent.pop(key, None)
            told, known = entry.told.pop(key, None), entry.kept.pop(key, None)
            if told is None and known is None:
                continue
            matters = entry.dirty = True
            if known is not None and known[1].state in ("fetching", "whole"):
                entry.away[key] = (known[0], now)
        self.serial += matters
        return matters

    def look(self, entry: Entry, everybody: Iterable[Who], now: float) -> list[str]:
        """Decide about one image; the agents that are to be told something."""
        entry.dirty = False
        if not entry.keep.copies and now - entry.since >= FORGET and not entry.kept:
            self._entries.pop(entry.keep.name, None)
            return []
        entry.look(everybody, now, self._patience)
        for key in [key for key, sent in entry.sent.items() if now - sent.at >= ANSWERS]:
            del entry.sent[key]  # its answer may have been lost
        entry.next = entry.wake_at(now, self._patience)
        self._pending = {key for one in self._entries.values() for key in one.orders}
        self.serial += 1
        return [key for key in entry.orders if key not in entry.sent or entry.sent[key].order != entry.orders[key]]

    def due(self, key: str, session: str, now: float) -> tuple[wire.KeepHere, ...]:
        """What the agent *key* is to be told now."""
        if key not in self._pending:
            return ()
        found = []
        for entry in self._entries.values():
            order, sent = entry.orders.get(key), entry.sent.get(key)
            if order is not None and (sent is None or (sent.session, sent.order) != (session, order)):
                entry.sent[key] = Sent(session, order, now)
                entry.next = min(entry.next, now + ANSWERS)
                found.append(order)
        return tuple(found)

    @property
    def next(self) -> float:
        """When one of them is to be looked at again, if nothing happens before; infinity: never."""
        return min((-math.inf if one.dirty else one.next for one in self._entries.values()), default=math.inf)

    def held(self, name: str) -> Held | None:
        """How far the order is that is known by *name*."""
        entry = self._entries.get(name)
        return _held(entry) if entry is not None else None

    def all(self) -> list[Held]:
        """How far all orders are, without those that ended, by image."""
        found = [_held(entry) for entry in self._entries.values() if entry.keep.copies]
        return sorted(found, key=lambda one: (one.image, one.platform))

    def _add(self, keep: wire.Keep, now: float, quiet: float) -> Entry | None:
        """None: there are too many."""
        if len(self._entries) >= MOST:
            ended = [name for name, entry in self._entries.items() if not entry.keep.copies]
            if not ended:
                return None
            del self._entries[min(ended, key=lambda name: self._entries[name].keep.serial)]
        entry = self._entries[keep.name] = Entry(keep, now, quiet)
        return entry


def _held(entry: Entry) -> Held:
    keepers = {who.name: entry.state_of(key) for key, (who, _) in entry.kept.items() if entry.state_of(key)}
    keepers |= {who.name: "away" for who, _ in entry.away.values()}
    return Held(
        image=entry.keep.image,
        platform=entry.keep.platform,
        copies=entry.keep.copies,
        whole=entry.whole(),
        serial=entry.keep.serial,
        settled=entry.idle if not entry.keep.copies else entry.whole() >= entry.keep.copies or entry.idle,
        keepers=keepers,
        failed={name: reason for name, reason, _ in entry.failed.values()},
        digest=entry.digest,
    )
