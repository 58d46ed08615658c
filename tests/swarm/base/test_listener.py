"""Whoever connects and says nothing whole is gone soon, is bounded by address, and costs others nothing."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from aiohttp import web

from swarm.base.listener import Listener, bound


@asynccontextmanager
async def serving(*, unproven: int = 4, head: float = 0.05, known: bool = False) -> AsyncIterator[tuple[Listener, int]]:
    """A server of one word behind a listener with small bounds."""

    async def handle(request: web.BaseRequest) -> web.Response:
        with listener.busy(request.transport):
            return web.Response(text=(await request.text()) or "hello")

    runner = web.ServerRunner(web.Server(handle))
    await runner.setup()
    assert runner.server is not None
    listener = Listener(runner.server, unproven=unproven, head=head, known=lambda _: known)
    _, port = listener.start("127.0.0.1", 0)
    try:
        yield listener, port
    finally:
        listener.close()
        await runner.cleanup()


async def closed(reader: asyncio.StreamReader) -> bool:
    """Wait until the other end closes."""
    async with asyncio.timeout(10):
        try:
            return await reader.read() == b""
        except ConnectionError:
            return True


async def ask(port: int) -> bytes:
    """One whole request on a connection of its own; the status line."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(b"GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n")
    answer = await reader.read()
    writer.close()
    return answer.partition(b"\r\n")[0]


async def test_half_a_request_is_closed_and_counted() -> None:
    async with serving() as (listener, port):
        for said in (b"", b"GET / HTTP/1.1\r\nHost: a\r\nX-Slow: "):
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.write(said)
            assert await closed(reader)
            writer.close()
        assert listener.late == 2
        assert await ask(port) == b"HTTP/1.1 200 OK"


async def test_half_of_a_second_request_is_closed_as_well() -> None:
    async with serving() as (listener, port):
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
        assert (await reader.readline()).startswith(b"HTTP/1.1 200")
        await reader.readuntil(b"hello")
        writer.write(b"GET / HT")
        assert await closed(reader)
        writer.close()
        assert listener.late == 1


async def test_an_idle_connection_that_proved_itself_stays() -> None:
    async with serving(head=0.02) as (listener, port):
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        for _ in range(3):
            writer.write(b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 2\r\n\r\nab")
            await reader.readuntil(b"\r\n\r\n")
            assert await reader.readexactly(2) == b"ab"
            idle, late = await asyncio.open_connection("127.0.0.1", port)  # its end says that the time has passed
            assert await closed(idle)
            late.close()
        writer.close()
        assert listener.late == 3


async def test_one_address_has_a_bounded_number_of_unproven_connections() -> None:
    async with serving(unproven=4, head=60.0) as (listener, port):
        held = [await asyncio.open_connection("127.0.0.1", port) for _ in range(4)]
        held[0][1].write(b"GET ")
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        assert await closed(reader)
        writer.close()
        assert listener.refused == 1
        for _, one in held:
            one.close()
            await one.wait_closed()
        async with asyncio.timeout(10):
            while await ask(port) != b"HTTP/1.1 200 OK":
                pass  # the ends are on their way


async def test_known_addresses_are_not_bounded() -> None:
    async with serving(unproven=1, head=60.0, known=True) as (listener, port):
        held = [await asyncio.open_connection("127.0.0.1", port) for _ in range(20)]
        assert await ask(port) == b"HTTP/1.1 200 OK"
        assert listener.refused == 0
        for _, writer in held:
            writer.close()


def test_a_listener_on_every_address_takes_both_families() -> None:
    with bound("::", 0, 8) as made:
        port = made.getsockname()[1]
        for family, ip in ((socket.AF_INET, "127.0.0.1"), (socket.AF_INET6, "::1")):
            with socket.socket(family) as client:
                client.connect((ip, port))
