"""Tags as agents ask for them: who waits for a meaning, and what is done about who lied."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Collection
from random import Random

from swarm.blob.digest import Digest
from swarm.protocol import wire
from swarm.protocol.blame import Blame
from tracker.state.agents import Agent, Agents
from tracker.state.court import Court
from tracker.state.tags import Meanings, Verdict
from tracker.state.trust import Trust

log = logging.getLogger("shoal.tracker")


class Tagging:
    """The meanings of tags, and those who wait for them."""

    def __init__(
        self,
        names: Meanings,
        agents: Agents,
        trust: Trust,
        court: Court,
        say: Callable[[Agent], None],
        now: Callable[[], float],
        chance: Random,
    ) -> None:
        """*say*: there is something to tell an agent. *chance*: draws who is to ask upstream."""
        self._names = names
        self._agents = agents
        self._trust = trust
        self._court = court
        self._say = say
        self._now = now
        self._chance = chance
        self._waiters: dict[str, list[asyncio.Future[None]]] = {}

    def asked(self, agent: Agent, name: str, ttl: float, since: float) -> Verdict:
        """*agent* wants to know since *since* what *name* means; those who are chosen to ask upstream are told so."""
        now = self._now()

        def fit(one: Agent) -> bool:
            return one.channels > 0 and one.synced and not self._trust.until(one.key, now)

        def pick(count: int, but: Collection[str]) -> list[tuple[str, str]]:
            return [(one.key, one.member) for one in self._agents.draw(self._chance, count, but, fit)]

        verdict = self._names.ask(name, agent.key, agent.member, ttl=ttl, since=since, now=now, pick=pick)
        for key in verdict.chosen:
            if (one := self._agents.get(key)) is not None:
                one.resolve[name] = None
                self._say(one)
        return verdict

    def told(
        self, agent: Agent, name: str, digest: Digest, media_type: str, size: int, proof: wire.Proof | None = None
    ) -> None:
        """Upstream told *agent* what *name* means."""
        now = self._now()
        if self._trust.until(agent.key, now):
            return
        for member in self._names.told(name, agent.key, digest, media_type, size, now, proof):
            for liar in self._agents.of(member)[:1]:
                log.error("name.disputed", extra={"fields": {"name": name, "agent": liar.key}})
                self._court.blame(
                    [Blame(liar.key, f"told another meaning of {name} than two others, before and after")]
                )
        self.wake(name)

    def waiter(self, name: str) -> asyncio.Future[None]:
        """Done when the meaning of *name* may be known."""
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiters.setdefault(name, []).append(future)
        return future

    def left(self, name: str, future: asyncio.Future[None]) -> None:
        """Nobody waits on *future* any more."""
        waiting = self._waiters.get(name)
        if waiting is not None and future in waiting:
            waiting.remove(future)
            if not waiting:
                del self._waiters[name]

    def wake(self, name: str) -> None:
        """Something was learned about *name*, or its resolver failed."""
        for future in self._waiters.pop(name, ()):
            if not future.done():
                future.set_result(None)

    def forget(self, agent: Agent) -> None:
        """*agent* is gone: others may ask for what it was to ask for."""
        for name in self._names.forget(agent.key):
            self.wake(name)

    def stop(self) -> None:
        """Answer everybody who waits."""
        for name in list(self._waiters):
            self.wake(name)
