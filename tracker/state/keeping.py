"""Kept images of this tracker: hears of orders and from keepers, has agents told, wakes when somebody stays away."""

from __future__ import annotations

import asyncio
import logging
import math
from collections.abc import Callable, Mapping

from swarm.protocol import wire
from tracker.members.selectors import Requirement, fits, parse_selector
from tracker.state import keeps
from tracker.state.agents import Agent, Agents
from tracker.state.alarm import Alarm
from tracker.state.keeps import Entry, Held, Keeps, Who

log = logging.getLogger("shoal.tracker")

PAUSE = 0.5
"""Seconds between two looks: agents come in waves, and each look goes through all of them."""

Labels = Callable[[str], Mapping[str, str] | None]
"""The labels of the node at an address; None: not known."""


class Keeping:
    """The orders to keep images. *say*: there is something to tell an agent; *trusted*: whether nobody doubts it."""

    def __init__(
        self,
        agents: Agents,
        alarm: Alarm,
        say: Callable[[Agent], None],
        trusted: Callable[[str], bool],
        labels: Labels,
        patience: float,
    ) -> None:
        """*patience*: seconds for which a keeper that left may come back."""
        self._agents, self._alarm, self._say, self._trusted, self._labels = agents, alarm, say, trusted, labels
        self._keeps = Keeps(patience)
        self._key = b""
        self._token = b""
        self._zones: set[str] = set()
        self._grown = False
        """Agents came since the last look."""
        self._looked = -math.inf

    async def use(self, token: bytes) -> None:
        """Orders are proven by *token* from now on; empty: there are none."""
        if token != self._token:
            self._token, self._key = token, await asyncio.to_thread(keeps.key_of, token) if token else b""

    def order(self, keep: wire.Keep) -> str:
        """Somebody who has shown the token orders *keep*. Returns why it cannot be taken; "" if it was."""
        refused = self._keeps.order(keeps.signed(keep, self._key), self._alarm.now())
        if not refused:
            fields = {"image": keep.image, "copies": keep.copies, "serial": keep.serial}
            log.info("keep.ordered", extra={"fields": fields})
            self._look()
        return refused

    def told(self, agent: Agent, said: tuple[wire.Kept, ...]) -> None:
        """*agent* says all that it keeps. What nobody with the token ordered does not count."""
        genuine = [one for one in said if keeps.genuine(one.keep, self._key)]
        for one in genuine:
            if one.state == "failed":
                fields = {"agent": agent.key, "name": agent.name, "image": one.keep.image, "reason": one.error[:300]}
                log.warning("keep.failed", extra={"fields": fields})
        who = Who(agent.key, agent.name, agent.zone, agent.member)
        self._keeps.told(who, genuine, self._alarm.now())
        self._arm()

    def left(self, agent: Agent) -> None:
        """*agent* is gone."""
        if self._keeps.left(agent.key, self._alarm.now()):
            self._arm()

    def came(self) -> None:
        """An agent is here, and has said what it holds."""
        if len(self._keeps):
            self._grown = True
            self._arm()

    def due(self, agent: Agent) -> tuple[wire.KeepHere, ...]:
        """What *agent* is to be told now."""
        orders = self._keeps.due(agent.key, agent.session, self._alarm.now())
        if orders:
            self._arm()
        return orders

    @property
    def serial(self) -> int:
        """Grows with every change."""
        return self._keeps.serial

    @property
    def short(self) -> int:
        """Images of which there are fewer whole copies than ordered."""
        return self._keeps.short

    def __len__(self) -> int:
        """Images that somebody is to keep."""
        return len(self._keeps)

    def held(self, name: str) -> Held | None:
        """How far the order is that is known by *name* (wire.Keep.name)."""
        return self._keeps.held(name)

    def all(self) -> list[Held]:
        """How far all of them are."""
        return self._keeps.all()

    # -- inside -----------------------------------------------------------------------------------

    def _arm(self) -> None:
        """Look when it is time, but not with each of many agents."""
        at = -math.inf if self._grown else self._keeps.next
        if at < math.inf:
            self._alarm.set(("keeps",), max(at, self._looked + PAUSE, self._alarm.now()), self._look)

    def _look(self) -> None:
        now = self._looked = self._alarm.now()
        agents = [agent for agent in self._agents.all() if agent.synced]
        zones = {agent.zone for agent in agents}
        grown, wider = self._grown, zones != self._zones
        self._grown, self._zones = False, zones
        for entry in self._keeps.due_for_look(now, grown=grown, wider=wider):
            for key in self._keeps.look(entry, self._everybody(entry, agents), now):
                if (agent := self._agents.get(key)) is not None:
                    self._say(agent)
        self._arm()

    def _everybody(self, entry: Entry, agents: list[Agent]) -> list[Who]:
        try:
            wanted = parse_selector(entry.keep.labels) if entry.keep.labels else ()
        except ValueError:
            wanted = None
        return [
            Who(
                agent.key,
                agent.name,
                agent.zone,
                agent.member,
                fits=wanted is not None and self._fits(entry.keep, wanted, agent),
                has=bool(entry.digest) and entry.digest in agent.held,
            )
            for agent in agents
        ]

    def _fits(self, keep: wire.Keep, wanted: tuple[Requirement, ...], agent: Agent) -> bool:
        """Whether *agent* may keep it."""
        if (keep.zone and agent.zone != keep.zone) or not self._trusted(agent.key):
            return False
        labels = self._labels(agent.ip) if wanted else {}
        return labels is not None and fits(wanted, labels)
