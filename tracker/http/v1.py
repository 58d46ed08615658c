"""What agents say, verb by verb: each takes the body of a `POST /v1/<verb>` and answers as swarm.protocol.wire says.

Here is all the waiting: a poll sleeps on a future that the cluster's state completes, with a
timer of its own, and is cancelled when its connection closes.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import TypeVar

import msgspec

from swarm.blob.digest import parse
from swarm.protocol import wire
from tracker.errors import Malformed, Outdated, Unready
from tracker.members.discovery import canonical
from tracker.members.gate import Visitor
from tracker.state.agents import Agent, key_of
from tracker.state.cluster import Cluster
from tracker.state.swarms import Swarm
from tracker.state.tags import Verdict

M = TypeVar("M", bound=wire.Wire)
Verb = Callable[[Visitor, bytes], Awaitable[bytes]]

MAX_NAME = 1024
"""Characters of the longest name: registry, repository and tag."""

_encode = msgspec.json.Encoder().encode
_OK = _encode(wire.Ok())


class Verbs:
    """The verbs of the protocol on one cluster state."""

    def __init__(self, cluster: Cluster) -> None:
        self._cluster = cluster
        self._decoders: dict[type[wire.Wire], msgspec.json.Decoder[wire.Wire]] = {}
        self.verbs: dict[str, Verb] = {
            "agent": self.agent,
            "board": self.board,
            "publish": self.publish,
            "progress": self.progress,
            "release": self.release,
            "seal": self.seal,
            "reject": self.reject,
            "leave": self.leave,
            "whole": self.whole,
            "corrupt": self.corrupt,
            "gone": self.gone,
            "name": self.name,
            "name/told": self.name_told,
            "name/failed": self.name_failed,
            "backoff": self.backoff,
            "preheat": self.preheat,
        }

    async def preheat(self, visitor: Visitor, body: bytes) -> bytes:
        """PreheatTold -> Ok."""
        said = self._decode(body, wire.PreheatTold)
        self._cluster.warming.told(self._cluster.hello(said, visitor), said)
        return _OK

    # -- the agent's channel ------------------------------------------------------------------------

    async def agent(self, visitor: Visitor, body: bytes) -> bytes:
        """AgentPoll -> AgentAnswer, a long-poll."""
        poll = self._decode(body, wire.AgentPoll)
        cluster = self._cluster
        agent = cluster.hello(poll, visitor)
        cluster.holds(agent, poll)
        answer = cluster.channels.news_for(agent)
        news = cluster.sessions.opened(agent)
        broken = True
        try:
            if answer is None and poll.wait > 0:
                await self._sleep(news, poll.wait, wire.LONGEST_HOLD)
                self._still(agent)
                answer = cluster.channels.news_for(agent)
            broken = False
        except (Outdated, Unready):
            broken = False
            raise
        finally:
            cluster.sessions.closed(agent, news, broken=broken)
        return _encode(answer or cluster.channels.nothing_for(agent))

    async def gone(self, visitor: Visitor, body: bytes) -> bytes:
        """Gone -> Ok."""
        said = self._decode(body, wire.Gone)
        agent = self._cluster.agents.get(key_of(visitor.ip, said.port))
        if agent is not None and agent.session == said.session:
            self._cluster.sessions.forget(agent, "gone", replaced=True)
        return _OK

    # -- boards -------------------------------------------------------------------------------------

    async def board(self, visitor: Visitor, body: bytes) -> bytes:
        """BoardPoll -> BoardAnswer, a long-poll."""
        poll = self._decode(body, wire.BoardPoll)
        cluster = self._cluster
        agent = cluster.hello(poll, visitor)
        swarm = cluster.join(agent, poll)
        if poll.wait > 0 and not cluster.answers.due(swarm, agent, poll):
            await self._wait_board(swarm, agent, poll.wait)
            self._still(agent)
        same = poll.incarnation == swarm.incarnation
        return _encode(cluster.answers.view(swarm, agent, poll.since, poll.generation if same else None))

    async def publish(self, visitor: Visitor, body: bytes) -> bytes:
        """Publish -> BoardAnswer."""
        said = self._decode(body, wire.Publish)
        agent = self._cluster.hello(said, visitor)
        swarm = self._cluster.publish(agent, said)
        return _encode(self._cluster.answers.view(swarm, agent, said.since, said.generation))

    async def progress(self, visitor: Visitor, body: bytes) -> bytes:
        """Progress -> BoardAnswer without hashes."""
        said = self._decode(body, wire.Progress)
        agent = self._cluster.hello(said, visitor)
        return self._claims_only(self._cluster.progress(agent, said), agent)

    async def release(self, visitor: Visitor, body: bytes) -> bytes:
        """Release -> BoardAnswer without hashes."""
        said = self._decode(body, wire.Release)
        agent = self._cluster.hello(said, visitor)
        return self._claims_only(self._cluster.release(agent, said), agent)

    async def seal(self, visitor: Visitor, body: bytes) -> bytes:
        """Seal -> Ok."""
        said = self._decode(body, wire.Seal)
        self._cluster.seal(self._cluster.hello(said, visitor), said)
        return _OK

    async def reject(self, visitor: Visitor, body: bytes) -> bytes:
        """Reject -> Ok."""
        said = self._decode(body, wire.Reject)
        self._cluster.reject(self._cluster.hello(said, visitor), said)
        return _OK

    async def leave(self, visitor: Visitor, body: bytes) -> bytes:
        """Leave -> Ok."""
        said = self._decode(body, wire.Leave)
        self._cluster.leave(self._cluster.hello(said, visitor), said.digest)
        return _OK

    async def whole(self, visitor: Visitor, body: bytes) -> bytes:
        """Whole -> Ok."""
        said = self._decode(body, wire.Whole)
        self._cluster.whole(self._cluster.hello(said, visitor), said)
        return _OK

    async def corrupt(self, visitor: Visitor, body: bytes) -> bytes:
        """Corrupt -> Ok."""
        said = self._decode(body, wire.Corrupt)
        self._cluster.court.corrupt(self._cluster.hello(said, visitor), said, canonical(said.peer_ip))
        return _OK

    # -- names and upstreams --------------------------------------------------------------------------

    async def name(self, visitor: Visitor, body: bytes) -> bytes:
        """NameLookup -> NameAnswer, a long-poll."""
        said = self._decode(body, wire.NameLookup)
        cluster = self._cluster
        agent = cluster.hello(said, visitor)
        name = _checked(said.name)
        since = cluster.now()
        deadline = since + min(said.wait, wire.MAX_WAIT)
        while True:
            now = cluster.now()
            verdict = cluster.tagging.asked(agent, name, max(0.0, said.ttl), since)
            if verdict.until is None or now >= deadline:
                return _encode(_name_answer(name, verdict, now))
            future = cluster.tagging.waiter(name)
            try:
                await self._sleep(future, min(deadline, verdict.until) - now)
            finally:
                cluster.tagging.left(name, future)
            self._still(agent)

    async def name_told(self, visitor: Visitor, body: bytes) -> bytes:
        """NameTold -> Ok."""
        said = self._decode(body, wire.NameTold)
        cluster = self._cluster
        agent = cluster.hello(said, visitor)
        if said.size < 0:
            raise Malformed("a manifest cannot have a negative size")
        name, kind = _checked(said.name), _checked(said.media_type)
        cluster.tagging.told(agent, name, parse(said.digest), kind, said.size, said.proof)
        return _OK

    async def name_failed(self, visitor: Visitor, body: bytes) -> bytes:
        """NameFailed -> Ok."""
        said = self._decode(body, wire.NameFailed)
        cluster = self._cluster
        agent = cluster.hello(said, visitor)
        cluster.names.failed(said.name, agent.key, gone=said.gone, declined=said.declined, now=cluster.now())
        cluster.tagging.wake(said.name)
        return _OK

    async def backoff(self, visitor: Visitor, body: bytes) -> bytes:
        """BackoffTold -> Ok."""
        said = self._decode(body, wire.BackoffTold)
        self._cluster.backoff(self._cluster.hello(said, visitor), said.host, said.seconds)
        return _OK

    # -- inside ---------------------------------------------------------------------------------------

    def _decode(self, body: bytes, kind: type[M]) -> M:
        decoder = self._decoders.get(kind)
        if decoder is None:
            decoder = self._decoders[kind] = msgspec.json.Decoder(kind)
        try:
            return decoder.decode(body)  # type: ignore[return-value]  # the decoder of *kind* decodes *kind*
        except msgspec.MsgspecError as error:
            raise Malformed(str(error)) from None

    def _claims_only(self, swarm: Swarm, agent: Agent) -> bytes:
        return _encode(self._cluster.answers.view(swarm, agent, 0, swarm.board.generation, news=False))

    def _still(self, agent: Agent) -> None:
        """After a wait: the tracker may stop, and the agent may have been forgotten."""
        if self._cluster.stopping:
            raise Unready("this tracker stops")
        if self._cluster.agents.get(agent.key) is not agent:
            raise Outdated("this agent was forgotten: join again")

    async def _wait_board(self, swarm: Swarm, agent: Agent, wait: float) -> None:
        if agent.waiting >= self._cluster.settings.max_waiting:
            raise Unready("too many boards wait for this agent")
        swarm.wake(agent.key)
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        swarm.waiters[agent.key] = future
        agent.waiting += 1
        try:
            await self._sleep(future, wait)
        finally:
            agent.waiting -= 1
            if swarm.waiters.get(agent.key) is future:
                del swarm.waiters[agent.key]

    async def _sleep(self, future: asyncio.Future[None], wait: float, longest: float = wire.MAX_WAIT) -> None:
        """Until *future* is done, for at most *wait* seconds, and at most *longest*."""
        metrics = self._cluster.metrics
        metrics.waiting.inc()
        timer = asyncio.get_running_loop().call_later(min(wait, longest), _complete, future)
        try:
            await future
        finally:
            timer.cancel()
            metrics.waiting.dec()


def _complete(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_result(None)


def _checked(text: str) -> str:
    if not text or len(text) > MAX_NAME:
        raise Malformed(f"a name has 1 to {MAX_NAME} characters")
    return text


def _name_answer(name: str, verdict: Verdict, now: float) -> wire.NameAnswer:
    known = None
    if verdict.known is not None:
        known = wire.Name(
            name=name,
            digest=verdict.known.digest,
            media_type=verdict.known.media_type,
            size=verdict.known.size,
            age=max(0.0, now - verdict.known.asked),
        )
    proofs = verdict.known.proofs if verdict.known is not None else ()
    return wire.NameAnswer(known=known, fresh=verdict.fresh, resolve=verdict.resolve, proofs=proofs)
