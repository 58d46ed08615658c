"""BitTorrent clients that announce sealed blobs here and are no agents (BEP 3)."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from ipaddress import ip_address
from random import Random
from typing import Protocol

from tracker.errors import Unknown
from tracker.members.gate import Gate, Visitor
from tracker.settings import TrackerSettings
from tracker.state.agents import Agents, key_of
from tracker.state.announce import Announce, Counts, Told
from tracker.state.swarms import Announcer, Swarm, Swarms


class Places(Protocol):
    """Where it is kept who may be handed out."""

    def place(self, swarm: Swarm, key: str) -> None:
        """Something about *key* in *swarm* has changed."""

    def watch(self, swarm: Swarm) -> None:
        """The next deadline of *swarm* may have changed."""


class Announcers:
    """Who announced which torrent, and whom it is told of."""

    def __init__(
        self,
        settings: TrackerSettings,
        now: Callable[[], float],
        chance: Random,
        agents: Agents,
        swarms: Swarms,
        places: Places,
    ) -> None:
        self._settings = settings
        self._now = now
        self._chance = chance
        self._agents = agents
        self._swarms = swarms
        self._places = places
        self._known: dict[str, set[tuple[str, str]]] = {}
        """Address -> (digest, key) of what was announced from there."""

    def announce(self, asked: Announce, visitor: Visitor) -> tuple[Counts, list[Told]]:
        """A BitTorrent client announces a sealed blob. Raises Unknown."""
        swarm = self._swarms.by_info_hash(asked.info_hash)
        if swarm is None:
            raise Unknown("unknown torrent: only sealed blobs have one")
        now = self._now()
        swarm.used = now
        key = key_of(visitor.ip, asked.port)
        if asked.event == "completed":
            swarm.downloaded += 1
        if self._agents.get(key) is None:
            self._announced(swarm, key, asked, visitor, now)
        if asked.event == "stopped":
            return counts(swarm), []
        told: list[Told] = []
        known = self._agents.by_key.get
        for other in swarm.pool.pick(key, visitor.zone, asked.numwant, self._chance):
            if (agent := known(other)) is not None:
                told.append(agent.told)
            elif (announcer := swarm.announcers.get(other)) is not None:
                told.append(announcer.told)
        return counts(swarm), told

    def expire(self, swarm: Swarm, now: float) -> None:
        """Forget who has not announced again."""
        while swarm.announcers and next(iter(swarm.announcers.values())).until <= now:
            key, announcer = swarm.announcers.popitem(last=False)
            self._forget(swarm, key, announcer)
            self._places.place(swarm, key)

    def review(self, gate: Gate, changed: Iterable[str] | None = None) -> None:
        """Membership changed, for these addresses (None: for any): whoever is no member any more is forgotten."""
        if not self._known:
            return
        for ip in list(self._known) if changed is None else changed:
            if ip in self._known and not gate.still(ip).member:
                for digest, key in self._known.pop(ip):
                    swarm = self._swarms.get(digest)
                    if swarm is not None and swarm.announcers.pop(key, None) is not None:
                        self._places.place(swarm, key)

    def _forget(self, swarm: Swarm, key: str, announcer: Announcer) -> None:
        ip = str(ip_address(announcer.told.packed))
        there = self._known.get(ip)
        if there is not None:
            there.discard((swarm.digest, key))
            if not there:
                del self._known[ip]

    def _announced(self, swarm: Swarm, key: str, asked: Announce, visitor: Visitor, now: float) -> None:
        known = swarm.announcers.pop(key, None)
        if known is not None and asked.event == "stopped":
            self._forget(swarm, key, known)
        if asked.event != "stopped":
            complete = asked.left == 0 or asked.event == "completed"
            until = now + 2 * self._settings.interval
            if known is not None and known.told.peer_id == asked.peer_id:
                told = known.told
            else:
                told = Told(visitor.packed, asked.port, asked.peer_id)
            swarm.announcers[key] = Announcer(told, visitor.zone, complete, until)
            self._known.setdefault(visitor.ip, set()).add((swarm.digest, key))
            while len(swarm.announcers) > self._settings.max_announcers:
                old, announcer = swarm.announcers.popitem(last=False)
                self._forget(swarm, old, announcer)
                self._places.place(swarm, old)
            if len(swarm.announcers) == 1:
                self._places.watch(swarm)
        self._places.place(swarm, key)


def counts(swarm: Swarm) -> Counts:
    """What a scrape tells of *swarm* (BEP 48)."""
    holders = swarm.pool.holders
    return Counts(holders, len(swarm.pool) - holders, swarm.downloaded)
