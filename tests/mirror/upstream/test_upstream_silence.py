"""Upstreams that are slow, and upstreams that answer nothing: waited for as long as they live, and no longer."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
from aiohttp import web

from mirror.errors import Unreachable
from mirror.upstream.client import Upstream
from mirror.upstream.guard import Guard
from mirror.upstream.transport import Deadlines
from swarm.blob.errors import SourceBroken, SourceSilent
from tests.mirror.upstream.test_upstream_traps import CONTENT, DIGEST, REPOSITORY, ranged, read, serving

QUICK = Deadlines(connect=0.5, first_byte=0.4, slow=20.0, stall=20.0)


async def test_a_slow_first_byte_is_waited_for_while_the_host_answers_something_else() -> None:
    """A cache that fetches the layer itself first: longer than a dead host is given, and one request."""
    pinged = asyncio.Event()

    async def answer(request: web.Request) -> web.StreamResponse:
        if request.path == "/v2/":
            pinged.set()
            return web.Response(status=401)
        await pinged.wait()
        await asyncio.sleep(QUICK.first_byte)  # past the bound of a host that answers nothing
        return ranged(request)

    async with serving(answer) as server, Upstream(deadlines=QUICK) as upstream:
        assert await read(upstream.blob(server.host, REPOSITORY, DIGEST)) == CONTENT
        assert [request.path for request in server.asked].count("/v2/") == 1
        assert len(server.asked) == 2


async def test_a_host_that_is_alive_and_never_sends_this_blob_is_given_up() -> None:
    ended = asyncio.Event()

    async def answer(request: web.Request) -> web.StreamResponse:
        if request.path == "/v2/":
            return web.Response()
        await ended.wait()
        return web.Response()

    deadlines = Deadlines(connect=0.5, first_byte=0.2, slow=0.8, stall=0.2)
    async with serving(answer) as server, Upstream(deadlines=deadlines) as upstream:
        with pytest.raises(SourceSilent) as caught:
            await read(upstream.blob(server.host, REPOSITORY, DIGEST))
        assert not isinstance(caught.value, Unreachable)
        assert len([request for request in server.asked if request.path != "/v2/"]) == 1
        ended.set()


class Hole:
    """A port that takes connections and says nothing, until it is told to speak."""

    def __init__(self) -> None:
        self.connections = 0
        self.speaks = False
        self.host = ""
        self.ended = asyncio.Event()

    async def handle(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One connection."""
        self.connections += 1
        try:
            if not self.speaks:
                await self.ended.wait()
                return
            while await reader.readuntil(b"\r\n\r\n"):
                writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(CONTENT) + CONTENT)
        except (OSError, asyncio.IncompleteReadError):
            pass
        finally:
            writer.close()


@asynccontextmanager
async def hole() -> AsyncIterator[Hole]:
    """A running Hole."""
    made = Hole()
    server = await asyncio.start_server(made.handle, "127.0.0.1", 0)
    made.host = f"127.0.0.1:{server.sockets[0].getsockname()[1]}"
    try:
        yield made
    finally:
        made.ended.set()
        server.close()


async def test_a_host_that_answers_nothing_is_refused_at_once_until_it_answers() -> None:
    """The first to ask waits for the bound; nobody after it does, and nobody is sent there to find out."""
    guard = Guard()
    async with hole() as dark, Upstream(deadlines=QUICK, guard=guard) as upstream:
        source = upstream.blob(dark.host, REPOSITORY, DIGEST)
        with pytest.raises(Unreachable):
            await read(source)
        for _ in range(20):
            with pytest.raises(SourceSilent, match="answers nothing"):
                await read(source)
        assert dark.connections <= 3, "the request, its ping, and a look at whether it is back"
        dark.speaks = True
        async with asyncio.timeout(20):
            while True:
                try:
                    assert await read(source) == CONTENT
                    break
                except SourceBroken:
                    await asyncio.sleep(0.05)
        assert not guard.status()[dark.host]["breaker_open"]


async def test_a_pooled_connection_that_died_unseen_is_replaced_by_a_new_one() -> None:
    """It was reset, or a firewall forgot it: what a new connection says counts, and nobody hears of the old one."""
    deaf: set[object] = set()

    async def answer(request: web.Request) -> web.StreamResponse:
        if request.transport in deaf:
            assert request.transport is not None
            request.transport.abort()
        return ranged(request)

    async with serving(answer) as server, Upstream() as upstream:
        source = upstream.blob(server.host, REPOSITORY, DIGEST)
        bodies = [source.open(0, 10) for _ in range(4)]
        for body in bodies:
            async with body as opened:
                async for _ in opened.chunks():
                    pass
        deaf |= {request.transport for request in server.asked}
        before = len(server.asked)
        assert await read(source, 0, 10) == CONTENT[:10]
        assert len(server.asked) == before + 2


async def test_every_connection_is_watched_by_the_kernel() -> None:
    """Unacknowledged bytes and idle connections are found out without our asking."""
    seen: list[tuple[int, int]] = []

    async def answer(request: web.Request) -> web.StreamResponse:
        return ranged(request)

    async with serving(answer) as server, Upstream() as upstream:
        source = upstream.blob(server.host, REPOSITORY, DIGEST)
        async with source.open(0, None) as body:
            connection = body._answer.response.connection
            assert connection is not None
            assert connection.transport is not None
            wire = connection.transport.get_extra_info("socket")
            seen.append((wire.getsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT), wire.getsockopt(1, 9)))
    assert seen == [(4500, 1)]


async def test_a_head_that_comes_byte_by_byte_is_not_waited_for() -> None:
    """The host is alive, and this answer would take minutes."""
    ended = asyncio.Event()

    async def trickle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            if b" /v2/ " in await reader.readuntil(b"\r\n\r\n"):
                writer.write(b"HTTP/1.1 401 Unauthorized\r\nContent-Length: 0\r\n\r\n")
            else:
                writer.write(b"HTTP/1.1 206 ")
                while not ended.is_set():
                    writer.write(b"x")
                    await writer.drain()
                    await asyncio.sleep(QUICK.first_byte / 8)
        except (OSError, asyncio.IncompleteReadError):
            pass
        finally:
            writer.close()

    server = await asyncio.start_server(trickle, "127.0.0.1", 0)
    try:
        async with Upstream(deadlines=QUICK) as upstream:
            source = upstream.blob(f"127.0.0.1:{server.sockets[0].getsockname()[1]}", REPOSITORY, DIGEST)
            with pytest.raises(SourceSilent) as caught:
                await read(source)
            assert not isinstance(caught.value, Unreachable)
    finally:
        ended.set()
        server.close()
