"""Orders to bring images to nodes before somebody waits for them: who shall have which, and how far each is. Pure.

Soft state, like everything a tracker knows: whoever ordered posts the order again, under the same id, to another
tracker if this one goes away; agents know an order by its id and begin no second one.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import msgspec

from swarm.protocol import wire

MOST = 64
"""Orders kept at once; those finished for longest go first."""

IMAGES = 64
"""Images of one order at most."""

MOST_KEEPERS = 10_000
"""Copies of an image that can be ordered to stay."""

KEEP = 3600.0
"""Seconds for which an order that nobody looks at any more is kept."""

LOST = 20.0
"""Seconds for which an agent that left may come back before it counts as lost: a restart takes a few."""


class Order(msgspec.Struct, frozen=True, kw_only=True):
    """What was ordered: *images* on some of the agents. Without a choice: on all of them."""

    id: str
    images: tuple[str, ...]
    platform: str = ""
    """os/architecture; "": the agent's own."""
    nodes: tuple[str, ...] = ()
    """Names of nodes; empty: all."""
    labels: str = ""
    """A label selector; a tracker that knows nodes' labels takes it, and puts names in its place."""
    zone: str = ""
    count: int = 0
    """So many agents, spread over zones; 0: all."""
    percent: float = 0.0
    keep: int | None = None
    """So many agents keep the images from now on; 0: nobody, and nothing is brought anywhere. None: none is kept."""
    serial: int = 0
    """Milliseconds since 1970: of two orders to keep the same image the later one counts."""


class Candidate(msgspec.Struct, frozen=True):
    """An agent that may be chosen."""

    key: str
    name: str
    zone: str


class Told(msgspec.Struct, kw_only=True):
    """How far one agent is. *state*: waiting, fetching, done, failed or lost."""

    name: str
    zone: str
    state: str = "waiting"
    done: int = 0
    total: int = 0
    sources: dict[str, int] = {}
    error: str = ""
    seconds: float = 0.0


class Progress(msgspec.Struct, frozen=True, kw_only=True):
    """GET /api/v1/preheats/{id}. *finished*: nobody is on the way any more; *serial* grows with every change."""

    id: str
    serial: int
    finished: bool
    agents: dict[str, Told]


@dataclass
class _Entry:
    order: Order
    since: float
    looked: float
    agents: dict[str, Told] = field(default_factory=dict)
    sent: dict[str, str] = field(default_factory=dict)
    """Agent -> session that has been told."""
    left: dict[str, float] = field(default_factory=dict)
    """Agent that left -> when."""
    serial: int = 0

    @property
    def finished(self) -> bool:
        return all(told.state in ("done", "failed", "lost") for told in self.agents.values())


class Preheats:
    """All orders of one tracker."""

    def __init__(self) -> None:
        self._entries: dict[str, _Entry] = {}

    def __len__(self) -> int:
        return len(self._entries)

    def add(self, order: Order, candidates: Sequence[Candidate], now: float) -> list[str]:
        """Take *order*; the agents to be told. One that is known already changes nothing."""
        known = self._entries.get(order.id)
        if known is not None:
            known.looked = now
            return []
        self._trim(now)
        entry = self._entries[order.id] = _Entry(order, now, now)
        for one in choose(order, candidates):
            entry.agents[one.key] = Told(name=one.name, zone=one.zone)
        return list(entry.agents)

    def order(self, identity: str) -> Order | None:
        """The order of that id."""
        entry = self._entries.get(identity)
        return entry.order if entry is not None else None

    def due(self, key: str, session: str) -> tuple[wire.Preheat, ...]:
        """What the agent *key* has not been told in this *session*."""
        found = []
        for entry in self._entries.values():
            told = entry.agents.get(key)
            if told is None or told.state in ("done", "failed") or entry.sent.get(key) == session:
                continue
            entry.sent[key] = session
            if entry.left.pop(key, None) is not None or told.state == "lost":
                told.state = "waiting"
                entry.serial += 1
            found.append(wire.Preheat(id=entry.order.id, images=entry.order.images, platform=entry.order.platform))
        return tuple(found)

    def told(self, key: str, said: wire.PreheatTold, now: float) -> bool:
        """The agent *key* says how far it is. Returns whether its order is known here."""
        entry = self._entries.get(said.id)
        told = entry.agents.get(key) if entry is not None else None
        if entry is None or told is None:
            return False
        told.state = said.state if said.state in ("fetching", "done", "failed") else "fetching"
        told.done, told.total = max(0, said.done), max(0, said.total)
        told.sources = {name[:16]: count for name, count in list(said.sources.items())[:8]}
        told.error = said.error[:300]
        told.seconds = round(now - entry.since, 1)
        entry.left.pop(key, None)
        entry.serial += 1
        return True

    def left(self, key: str, now: float) -> None:
        """The agent *key* is gone; it may come back for a while."""
        for entry in self._entries.values():
            if key in entry.agents:
                entry.left.setdefault(key, now)
                entry.serial += 1

    def progress(self, identity: str, now: float) -> Progress | None:
        """How far the order is; None if it is not known."""
        entry = self._entries.get(identity)
        if entry is None:
            return None
        entry.looked = now
        for key, since in list(entry.left.items()):
            told = entry.agents[key]
            if now - since >= LOST and told.state not in ("done", "failed"):
                told.state, told.error = "lost", "the agent went away and did not come back"
                entry.serial += 1
                del entry.left[key]
        return Progress(id=identity, serial=entry.serial, finished=entry.finished, agents=entry.agents)

    def _trim(self, now: float) -> None:
        for identity in [name for name, entry in self._entries.items() if now - entry.looked > KEEP]:
            del self._entries[identity]
        while len(self._entries) >= MOST:
            del self._entries[
                min(self._entries, key=lambda name: (not self._entries[name].finished, self._entries[name].looked))
            ]


def choose(order: Order, candidates: Iterable[Candidate]) -> list[Candidate]:
    """The agents that shall have what is ordered; a part of them is spread evenly over the zones."""
    if order.keep == 0:
        return []
    fitting = [
        one
        for one in candidates
        if (not order.nodes or one.name in order.nodes) and (not order.zone or one.zone == order.zone)
    ]
    wanted = len(fitting)
    if order.count:
        wanted = min(wanted, order.count)
    if order.percent:
        wanted = min(wanted, math.ceil(len(fitting) * min(order.percent, 100.0) / 100.0))
    return _spread(fitting, wanted)


def _spread(candidates: Iterable[Candidate], count: int) -> list[Candidate]:
    """*count* of them, from each zone in turn, in the order of their names."""
    zones: dict[str, list[Candidate]] = {}
    for one in sorted(candidates, key=lambda one: (one.name, one.key)):
        zones.setdefault(one.zone, []).append(one)
    chosen: list[Candidate] = []
    while len(chosen) < count and any(zones.values()):
        for zone in sorted(zones):
            if zones[zone] and len(chosen) < count:
                chosen.append(zones[zone].pop(0))
    return chosen


def check(order: Order) -> str:
    """Why *order* cannot be taken, as one line; "" if it can."""
    if not 8 <= len(order.id) <= 64 or not order.id.isalnum():
        return "id must be 8 to 64 letters and digits"
    if not 0 < len(order.images) <= IMAGES or any(not 0 < len(image) <= 512 for image in order.images):
        return f"images must be 1 to {IMAGES} names"
    if order.platform and len(order.platform.split("/")) not in (2, 3):
        return "platform must be os/architecture"
    if order.count < 0 or not 0 <= order.percent <= 100:
        return "count must be 0 or more, percent 0 to 100"
    if order.keep is not None and (not 0 <= order.keep <= MOST_KEEPERS or order.serial <= 0):
        return f"keep must be 0 to {MOST_KEEPERS}, and serial milliseconds since 1970"
    if order.keep is not None and order.nodes:
        return "keepers are chosen by labels or zone: a node that takes over has another name"
    return ""


def totals(agents: Mapping[str, Told]) -> dict[str, int]:
    """Bytes of all agents by source."""
    found: dict[str, int] = {}
    for told in agents.values():
        for source, count in told.sources.items():
            found[source] = found.get(source, 0) + count
    return found
