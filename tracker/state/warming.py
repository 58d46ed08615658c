"""Preheats of this tracker, and those who wait for news: tells agents their orders, hears how far they are."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable

from swarm.protocol import wire
from tracker.state.agents import Agent, Agents
from tracker.state.preheats import Candidate, Order, Preheats, Progress


class Warming:
    """The orders. *say*: there is something to tell an agent; *now*: seconds of the loop's clock."""

    def __init__(self, agents: Agents, say: Callable[[Agent], None], now: Callable[[], float]) -> None:
        self._agents, self._say, self._now = agents, say, now
        self._preheats = Preheats()
        self._moved = asyncio.Event()

    def order(self, order: Order) -> None:
        """Tell the agents that *order* chooses; once for each order."""
        everybody = [Candidate(agent.key, agent.name, agent.zone) for agent in self._agents.all()]
        for key in self._preheats.add(order, everybody, self._now()):
            if (agent := self._agents.get(key)) is not None:
                self._say(agent)

    def due(self, agent: Agent) -> tuple[wire.Preheat, ...]:
        """The orders that *agent* has not been told in this session."""
        return self._preheats.due(agent.key, agent.session)

    def told(self, agent: Agent, said: wire.PreheatTold) -> None:
        """*agent* says how far it is."""
        if self._preheats.told(agent.key, said, self._now()):
            moved, self._moved = self._moved, asyncio.Event()
            moved.set()

    def left(self, agent: Agent) -> None:
        """*agent* is gone."""
        self._preheats.left(agent.key, self._now())

    def known(self, identity: str) -> Order | None:
        """The order of that id."""
        return self._preheats.order(identity)

    def progress(self, identity: str) -> Progress | None:
        """How far an order is; None if it is not known."""
        return self._preheats.progress(identity, self._now())

    async def news(self, seconds: float) -> None:
        """Until an order moved, *seconds* at most."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._moved.wait()
