"""A tracker: the real state of one (tracker/state) on simulated time, and what its HTTP face does with a message.

Boards, claims, leases, who is named to whom, waves of news, zones: all of it is the tracker's own code.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from functools import partial
from random import Random
from typing import Any

from prometheus_client import CollectorRegistry

from swarm.protocol import wire
from tracker.errors import Outdated
from tracker.members.gate import Visitor
from tracker.metrics import Metrics
from tracker.settings import TrackerSettings
from tracker.state.agents import Agent
from tracker.state.cluster import Cluster
from tracker.state.swarms import Raw, Swarm

Heard = Callable[[Raw, int], None]
"""Takes an answer, and the windows that are published as it was made (bit w: window w)."""


def fields(me: wire.Me) -> dict[str, Any]:
    """Who speaks, for a message."""
    return {"node": me.node, "port": me.port, "session": me.session, "lane": me.lane}


class Poll:
    """A question about a board that may have to wait for its answer."""

    def __init__(self, waits: bool) -> None:
        self.waits = waits
        self.over = False
        """Nobody listens for the answer any more."""
        self.waiting: tuple[Swarm, str, asyncio.Future[None]] | None = None
        self.timer: asyncio.TimerHandle | None = None

    def cancel(self) -> None:
        """The connection is closed by who asked."""
        self.over = True
        if self.waiting is not None:
            swarm, key, future = self.waiting
            _gone(swarm, key, future)
        if self.timer is not None:
            self.timer.cancel()


class Tracker:
    """See the module. Make it on the running clock. *cost*: seconds of its one core for each answer."""

    def __init__(self, settings: TrackerSettings, chance: Random, delay: float, cost: float) -> None:
        self.cluster = Cluster(settings, Metrics(CollectorRegistry()), chance)
        self.messages = 0
        """Requests that it was asked."""
        self._loop = asyncio.get_running_loop()
        self._delay = delay
        self._cost = cost
        self._free_at = 0.0
        """When it has done all that it was asked."""

    def hello(self, poll: wire.AgentPoll, visitor: Visitor) -> None:
        """An agent opens its channel. It takes no time: agents are there before they pull."""
        agent = self.cluster.hello(poll, visitor)
        self.cluster.sessions.opened(agent)
        self.cluster.holds(agent, poll)

    def has(self, digest: str, size: int, hashes: bytes, me: wire.Me, visitor: Visitor) -> None:
        """An agent that has said hello holds a blob, and its hashes are known."""
        agent = self.cluster.hello(me, visitor)
        self.cluster.holds(agent, wire.AgentPoll(**fields(me), add=(wire.CompleteBlob(digest=digest, size=size),)))
        self.cluster.whole(agent, wire.Whole(**fields(me), digest=digest, size=size, hashes=hashes))

    def holds(self, poll: wire.AgentPoll, visitor: Visitor) -> None:
        """What an agent holds has changed."""
        self._say(lambda: self.cluster.holds(self.cluster.hello(poll, visitor), poll))

    def ask(self, poll: wire.BoardPoll, visitor: Visitor, heard: Heard) -> Poll:
        """BoardPoll -> BoardAnswer, a long-poll."""
        question = Poll(poll.wait > 0)
        self._say(partial(self._board, poll, visitor, heard, question))
        return question

    def publish(self, said: wire.Publish, visitor: Visitor, heard: Heard) -> None:
        """Publish -> BoardAnswer."""

        def act() -> None:
            agent = self.cluster.hello(said, visitor)
            self._answer(self.cluster.publish(agent, said), agent, heard, said.since, said.generation)

        self._say(act)

    def progress(self, said: wire.Progress, visitor: Visitor, heard: Heard) -> None:
        """Progress -> BoardAnswer without news."""

        def act() -> None:
            agent = self.cluster.hello(said, visitor)
            self._answer(self.cluster.progress(agent, said), agent, heard, 0, said.generation, news=False)

        self._say(act)

    def seal(self, said: wire.Seal, visitor: Visitor) -> None:
        """Seal -> Ok."""
        self._say(lambda: self.cluster.seal(self.cluster.hello(said, visitor), said))

    def lost(self, key: str) -> None:
        """The connections of an agent broke; it is forgotten after the time of grace."""

        def act() -> None:
            if (agent := self.cluster.agents.get(key)) is not None:
                self.cluster.sessions.forget(agent, "gone")

        self._loop.call_later(self.cluster.settings.grace, act)

    # -- inside -----------------------------------------------------------------------------------

    def _say(self, act: Callable[[], None]) -> None:
        """A message comes here, and *act* is what is done about it when its turn comes."""
        self.messages += 1
        self._loop.call_later(self._delay, self._work, act)

    def _work(self, act: Callable[[], None]) -> None:
        """In turn: the tracker has one core."""
        if not self._cost:
            _unless_outdated(act)
            return
        self._free_at = max(self._loop.time(), self._free_at) + self._cost
        self._loop.call_at(self._free_at, _unless_outdated, act)

    def _board(self, poll: wire.BoardPoll, visitor: Visitor, heard: Heard, question: Poll) -> None:
        if question.over:
            return
        agent = self.cluster.hello(poll, visitor)
        swarm = self.cluster.join(agent, poll)
        generation = poll.generation if poll.incarnation == swarm.incarnation else None
        answer = partial(self._unless_over, question, swarm, agent, heard, poll.since, generation)
        if not question.waits or self.cluster.answers.due(swarm, agent, poll):
            answer()
            return
        future = self._loop.create_future()
        swarm.wake(agent.key)
        swarm.waiters[agent.key] = future
        question.waiting = swarm, agent.key, future
        question.timer = self._loop.call_later(poll.wait, _done, future)
        future.add_done_callback(lambda _: self._work(answer))

    def _unless_over(
        self, question: Poll, swarm: Swarm, agent: Agent, heard: Heard, since: int, generation: int | None
    ) -> None:
        if not question.over:
            question.cancel()
            self._answer(swarm, agent, heard, since, generation)

    def _answer(
        self, swarm: Swarm, agent: Agent, heard: Heard, since: int, generation: int | None, *, news: bool = True
    ) -> None:
        if self.cluster.agents.get(agent.key) is agent:
            told = self.cluster.answers.view(swarm, agent, since, generation, news=news)
            known = swarm.board.available.published if news else 0
            self._loop.call_later(self._delay, heard, told, known)


def _gone(swarm: Swarm, key: str, future: asyncio.Future[None]) -> None:
    if swarm.waiters.get(key) is future:
        del swarm.waiters[key]


def _done(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_result(None)


def _unless_outdated(act: Callable[[], None]) -> None:
    with contextlib.suppress(Outdated):  # what an agent that was forgotten has still said
        act()
