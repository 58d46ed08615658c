"""Which agents speak to this tracker: they come, keep their channel open, fall silent, are thrown out."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterable
from typing import Protocol

from swarm.protocol import wire
from tracker.errors import Malformed, Outdated, Unready
from tracker.members.discovery import Reason
from tracker.members.gate import Gate, Visitor
from tracker.metrics import Metrics
from tracker.settings import TrackerSettings
from tracker.state.agents import Agent, Agents, key_of, member_as
from tracker.state.alarm import Alarm
from tracker.state.refusals import Refusals
from tracker.state.rivals import PROOF, Rivals, explain

log = logging.getLogger("shoal.tracker")

Note = Callable[[str, Reason, str], None]
"""Address, reason, message."""

SILENCE = 60.0
"""Seconds without any word after which an agent without an open channel is forgotten."""


PER_MEMBER = 256
"""Agents of one member at most: behind an address that nodes share there may be some, made-up ones cost nothing."""


class Household(Protocol):
    """What else is kept of agents, and follows when they go or move."""

    def left(self, agent: Agent) -> None:
        """*agent* is gone."""

    def moved(self, agent: Agent) -> None:
        """*agent* is in another zone now."""


class Sessions:
    """The sessions of agents; `agents` is the record of them."""

    def __init__(
        self,
        settings: TrackerSettings,
        metrics: Metrics,
        alarm: Alarm,
        agents: Agents,
        note: Note,
        household: Household,
    ) -> None:
        self.refusals = Refusals()
        self.rivals = Rivals()
        self._settings = settings
        self._metrics = metrics
        self._alarm = alarm
        self._agents = agents
        self._note = note
        self._household = household

    def hello(self, me: wire.Me, visitor: Visitor) -> Agent:
        """The agent that speaks; a new session at its address replaces the one before. Raises Outdated, Unready.

        Only its own member's: outside of Kubernetes an agent states its address itself, and another member that
        states the same one must not throw it out while its channel is open.
        """
        now = self._alarm.now()
        key = key_of(visitor.ip, me.port)
        agent = self._agents.get(key)
        if agent is None or agent.session != me.session:
            if not 0 < me.port < 65536 or not me.session or len(me.session) > 64:
                raise Malformed("port must be 1 to 65535, session 1 to 64 characters")
            if self._agents.is_retired(key, me.session):
                raise Outdated(self._replaced(key, agent, me, now))
            if agent is not None:
                if agent.channels and agent.member != member_as(visitor.identity, visitor.ip, me.port):
                    raise Outdated(self._replaced(key, agent, me, now, f"{key} is in use by {agent.member}"))
                self.forget(agent, "replaced", replaced=True)
            agent = self._join(me, visitor, now)
        if me.lane != agent.peer.lane:
            if not 0 <= me.lane < 65536:
                raise Malformed("lane must be a port, or 0")
            agent.peer = wire.Peer(ip=agent.ip, port=agent.port, lane=me.lane)
        agent.seen = now
        return agent

    def forget(self, agent: Agent, why: str, *, replaced: bool = False) -> None:
        """*agent* is gone: its claims are free at once, and it is handed to nobody."""
        if self._agents.get(agent.key) is not agent:
            return
        self._agents.remove(agent, replaced=replaced)
        self._alarm.set(("agent", agent.key), None, _nothing)
        self._metrics.agents.set(len(self._agents))
        self._metrics.agents_lost.labels(why).inc()
        log.info("agent.left", extra={"fields": {"agent": agent.key, "name": agent.name, "why": why}})
        self._household.left(agent)
        self.say(agent)

    def review(self, gate: Gate, changed: Iterable[str] | None = None) -> None:
        """Membership changed: whoever is no member any more leaves all swarms at once; zones may be new.

        *changed*: the addresses that it changed for; None: any.
        """
        for ip in self._agents.addresses() if changed is None else changed:
            there = self._agents.at(ip)
            visitor = gate.still(ip) if there else None
            for agent in there:
                if visitor is not None and not visitor.member:
                    self.forget(agent, "no-member")
                elif visitor is not None and visitor.zone != agent.zone:
                    agent.zone = visitor.zone
                    self._household.moved(agent)

    def opened(self, agent: Agent) -> asyncio.Future[None]:
        """*agent* polls its channel; the future is done when there is something to say. An older poll is answered."""
        self.say(agent)
        agent.news = asyncio.get_running_loop().create_future()
        agent.channels += 1
        self._listen(agent, None)
        return agent.news

    def closed(self, agent: Agent, news: asyncio.Future[None], *, broken: bool) -> None:
        """A poll ended: answered, or *broken* because the connection was closed from the other end."""
        agent.channels -= 1
        if agent.news is news:
            agent.news = None
        if agent.channels == 0:
            grace = self._settings.grace if broken else self._settings.away
            self._listen(agent, self._alarm.now() + grace)

    def say(self, agent: Agent) -> None:
        """There is something to tell *agent*: answer the open poll of its channel."""
        if agent.news is not None and not agent.news.done():
            agent.news.set_result(None)

    # -- inside -----------------------------------------------------------------------------------

    def _join(self, me: wire.Me, visitor: Visitor, now: float) -> Agent:
        if len(self._agents) >= self._settings.max_agents:
            raise Unready("too many agents")
        agent = self._agents.add(me, visitor.ip, visitor.zone, now, visitor.identity)
        if len(self._agents.of(agent.member)) > PER_MEMBER:
            self._agents.remove(agent, replaced=False)
            raise Unready(f"too many agents of {agent.member}")
        self._metrics.agents.set(len(self._agents))
        self.refusals.forget(agent.ip)
        log.info("agent.joined", extra={"fields": {"agent": agent.key, "name": agent.name, "zone": agent.zone}})
        self._note(agent.ip, Reason.JOINED, f"Joined as {agent.name}")
        self._listen(agent, now + SILENCE)
        return agent

    def _replaced(
        self, key: str, agent: Agent | None, me: wire.Me, now: float, why: str = "this session was replaced"
    ) -> str:
        """Why a session that was replaced, or is not taken, is refused, as one line."""
        if agent is None:
            return why
        rival = self.rivals.note(key, agent.name, me.node[:253], now)
        if rival.times == PROOF:
            log.error("agent.rivals", extra={"fields": {"agent": key, "taken": rival.taken, "refused": rival.refused}})
        return explain(rival) if rival.times >= PROOF else why

    def _listen(self, agent: Agent, at: float | None) -> None:
        """Without a word from *agent*, it counts as gone *at* that time."""
        self._alarm.set(("agent", agent.key), at, lambda: self._silent(agent))

    def _silent(self, agent: Agent) -> None:
        if agent.channels:
            return
        now = self._alarm.now()
        if not agent.synced and now - agent.seen < SILENCE:
            self._listen(agent, agent.seen + SILENCE)  # it has not opened its channel yet
            return
        self._note(agent.ip, Reason.LOST, "Fell silent; its claims are free")
        self.forget(agent, "silent")


def _nothing() -> None:
    """For deadlines that are taken back."""
