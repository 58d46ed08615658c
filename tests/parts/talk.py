"""A tracker in this process, and agents that say by hand what swarm.protocol.wire lets an agent say."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any, TypeVar

import aiohttp
from yarl import URL

from swarm.blob.digest import Digest, parse
from swarm.blob.geometry import geometry
from swarm.protocol import wire
from tracker.http.server import TrackerServer
from tracker.members.discovery import Discovery
from tracker.members.static import StaticDiscovery
from tracker.settings import TrackerSettings

A = TypeVar("A", bound=wire.Wire)

JSON = {"Content-Type": "application/json"}
"""What the body of every verb is."""

DEADLINE = 20.0


def digest_of(text: str) -> Digest:
    """The digest of a blob that nobody has to have."""
    return parse("sha256:" + hashlib.sha256(text.encode()).hexdigest())


def hashes_of(size: int, window: int, told_by: str = "truth") -> bytes:
    """Piece hashes of a window that only *told_by* would tell."""
    pieces = range(geometry(size).windows[window].pieces)
    return b"".join(hashlib.sha1(f"{told_by} {window} {piece}".encode()).digest() for piece in pieces)


def whole_of(size: int, told_by: str = "truth") -> bytes:
    """All piece hashes of a blob."""
    return b"".join(hashes_of(size, window.index, told_by) for window in geometry(size).windows)


async def until(true: Callable[[], bool]) -> None:
    """Let the loop run until *true*: for what happens in the tracker and is told to nobody."""
    async with asyncio.timeout(DEADLINE):
        while not true():  # noqa: ASYNC110 - there is no event; the tracker runs in this loop
            await asyncio.sleep(0)


class Refusal(Exception):
    """The tracker refused."""

    def __init__(self, status: int, problem: wire.Problem) -> None:
        super().__init__(f"{status} {problem}")
        self.status = status
        self.problem = problem


class Talker:
    """One agent: its connections come from *ip*, its swarm port is *port*."""

    def __init__(self, url: str, http: aiohttp.ClientSession, port: int, node: str) -> None:
        self.url = url
        self.http = http
        self.me: dict[str, Any] = {"node": node, "port": port, "session": f"session of {node}"}
        self.seen: dict[str, wire.BoardAnswer] = {}

    async def say(self, verb: str, message: wire.Wire, kind: type[A]) -> A:
        """One request. Raises Refusal."""
        async with (
            asyncio.timeout(DEADLINE),
            self.http.post(f"{self.url}/v1/{verb}", data=wire.encode(message), headers=JSON) as answer,
        ):
            body = await answer.read()
        if answer.status != 200:
            raise Refusal(answer.status, wire.decode(body, wire.Problem))
        return wire.decode(body, kind)

    async def poll(self, **said: Any) -> wire.AgentAnswer:
        """The agent's channel."""
        return await self.say("agent", wire.AgentPoll(**self.me, **said), wire.AgentAnswer)

    async def hello(self, **held: int) -> wire.AgentAnswer:
        """The first poll: everything that it holds, by the text of `digest_of` and size."""
        said = tuple(wire.CompleteBlob(digest=digest_of(text), size=size) for text, size in held.items())
        return await self.poll(full=True, add=said)

    async def board(self, digest: str, **said: Any) -> wire.BoardAnswer:
        """Take part in a board, knowing of it what the last answer said."""
        last = self.seen.get(digest)
        if last is not None:
            said = {
                "incarnation": last.incarnation,
                "since": last.version,
                "generation": last.generation,
                "claims": last.claims,
                **said,
            }
        answer = await self.say("board", wire.BoardPoll(**self.me, digest=digest, **said), wire.BoardAnswer)
        self.seen[digest] = answer
        return answer

    async def publish(self, digest: str, size: int, window: int, told_by: str = "truth") -> wire.BoardAnswer:
        """Tell the hashes of a window."""
        message = wire.Publish(**self._board(digest), size=size, window=window, hashes=hashes_of(size, window, told_by))
        return await self.say("publish", message, wire.BoardAnswer)

    async def bring_in(self, digest: str, size: int, told_by: str = "truth") -> None:
        """Join, and publish all windows."""
        await self.board(digest, want=1, size=size)
        for window in geometry(size).windows:
            await self.publish(digest, size, window.index, told_by)
        await self.board(digest)

    async def seal(self, digest: str) -> None:
        """The sha256 matched."""
        await self.say("seal", wire.Seal(**self._board(digest)), wire.Ok)

    async def reject(self, digest: str) -> None:
        """The sha256 did not match."""
        await self.say("reject", wire.Reject(**self._board(digest), reason="sha256"), wire.Ok)

    async def whole(self, digest: str, size: int, told_by: str = "truth") -> None:
        """All hashes of a blob that it holds."""
        message = wire.Whole(**self.me, digest=digest, size=size, hashes=whole_of(size, told_by))
        await self.say("whole", message, wire.Ok)

    def _board(self, digest: str) -> dict[str, Any]:
        last = self.seen[digest]
        return {**self.me, "digest": digest, "incarnation": last.incarnation, "generation": last.generation}

    async def get(self, path: str, **headers: str) -> tuple[int, bytes]:
        """Status and body of a GET; *path* goes out as it is."""
        async with asyncio.timeout(DEADLINE), self.http.get(URL(self.url + path, encoded=True), headers=headers) as got:
            return got.status, await got.read()


class Town:
    """A tracker and those who talk to it."""

    def __init__(self, server: TrackerServer) -> None:
        self.server = server
        self._sessions: list[aiohttp.ClientSession] = []

    def agent(self, node: str, port: int = 6881, ip: str = "127.0.0.1") -> Talker:
        """A new agent with connections of its own, from *ip* (any of 127.0.0.0/8)."""
        connector = aiohttp.TCPConnector(local_addr=(ip, 0))
        http = aiohttp.ClientSession(connector=connector)
        self._sessions.append(http)
        return Talker(self.server.url, http, port, node)

    async def close(self) -> None:
        """Close all connections, then the tracker."""
        for session in self._sessions:
            await session.close()
        await self.server.close()


@asynccontextmanager
async def town(discovery: Discovery | None = None, **settings: Any) -> AsyncIterator[Town]:
    """A running tracker with these settings; everything on 127.0.0.0/8 is a member unless *discovery* says else."""
    chosen = TrackerSettings(**{"listen": ("127.0.0.1", 0), **settings})
    server = TrackerServer(chosen, discovery or StaticDiscovery(["127.0.0.0/8"]))
    await server.start()
    here = Town(server)
    try:
        yield here
    finally:
        await here.close()
