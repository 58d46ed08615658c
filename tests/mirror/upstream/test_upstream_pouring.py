"""Ranges past the event loop: a thread gives them from a socket to a sink, or says that it cannot."""

from __future__ import annotations

import asyncio
import gzip
import socket
import ssl
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

import pytest
import trustme
from aiohttp import web

from mirror.errors import NotAsAsked, Unreachable
from mirror.upstream.addresses import AddressRules
from mirror.upstream.client import Upstream
from mirror.upstream.guard import Guard
from mirror.upstream.pouring import KEPT_FOR, Way, read_head
from mirror.upstream.registries import Registries, Registry, Tls
from mirror.upstream.sources import UpstreamSource
from mirror.upstream.transport import HOP_HEADER, Deadlines
from swarm.base.pace import Pace
from swarm.blob.digest import parse
from swarm.blob.errors import SourceBroken, SourceBusy, StoreFull
from tests.mirror.upstream.test_upstream_traps import REPOSITORY, Purse, ranged, redirecting, serving
from tests.parts import data

SIZE = 1_200_000
CONTENT = data.blob(SIZE, 6)
DIGEST = parse(data.digest_of(CONTENT))
FIRST = 1_000_000
"""Bytes of the first range, which teaches the way: more than the loop reads before it looks at the head."""


class Sink:
    """Takes what comes, in steps of at most *room* bytes."""

    def __init__(self, room: int = 7_000, fails: Exception | None = None) -> None:
        self.room = room
        self.got = b""
        self.threads: set[int] = set()
        self.came = threading.Event()
        self._fails = fails

    def put(self, data: memoryview) -> None:
        assert 0 < len(data) <= self.room
        if self._fails is not None:
            raise self._fails
        self.got += bytes(data)
        self.threads.add(threading.get_ident())
        self.came.set()


async def teach(source: UpstreamSource) -> None:
    """Read the first range in the ordinary manner."""
    async with source.open(0, FIRST) as body:
        async for _ in body.chunks():
            pass


async def pour(source: UpstreamSource, sink: Sink, start: int = FIRST, stop: int = SIZE) -> tuple[bool, int]:
    """(whether it was done, how often an answer began)."""
    begun: list[None] = []
    done = await source.pour(start, stop, SIZE, sink, lambda: begun.append(None))
    return done, len(begun)


@asynccontextmanager
async def speaking(*replies: bytes, hang: bool = False) -> AsyncIterator[tuple[str, list[bytes]]]:
    """(host, requests): the first request is answered as a registry does, the others by *replies*, in turn, each of
    which ends its connection (*hang*: it stays silent). A reply "" goes without a word."""
    asked: list[bytes] = []
    ended = asyncio.Event()

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while True:
                asked.append(await reader.readuntil(b"\r\n\r\n"))
                if len(asked) > 1:
                    writer.write(replies[min(len(asked) - 2, len(replies) - 1)])
                    await writer.drain()
                    if hang:
                        await ended.wait()
                    return
                writer.write(answer(0, FIRST) + CONTENT[:FIRST])
        except (OSError, asyncio.IncompleteReadError):
            pass
        finally:
            writer.close()

    server = await asyncio.start_server(handle, "127.0.0.1", 0)
    try:
        yield f"127.0.0.1:{server.sockets[0].getsockname()[1]}", asked
    finally:
        ended.set()
        server.close()
        await server.wait_closed()


def answer(
    start: int = FIRST, stop: int = SIZE, *, total: int = SIZE, status: str = "206 Partial Content", more: str = ""
) -> bytes:
    """The head of an answer."""
    return (
        f"HTTP/1.1 {status}\r\nContent-Length: {stop - start}\r\n"
        f"Content-Range: bytes {start}-{stop - 1}/{total}\r\n{more}\r\n"
    ).encode()


async def good(request: web.Request) -> web.StreamResponse:
    return ranged(request, CONTENT)


async def test_ranges_come_in_a_thread_of_their_own_over_one_connection() -> None:
    async with serving(good) as server, Upstream() as upstream:
        source = upstream.blob(server.host, REPOSITORY, DIGEST)
        await teach(source)
        whole = b""
        for start in range(0, SIZE, 250_000):
            sink = Sink()
            assert await pour(source, sink, start, min(start + 250_000, SIZE)) == (True, 1)
            assert threading.get_ident() not in sink.threads
            whole += sink.got
        assert whole == CONTENT
        poured = server.asked[1:]
        assert len({request.transport for request in poured if request.transport}) <= 1
        assert {request.headers[HOP_HEADER] for request in poured} == {"1"}
        assert {request.headers["Accept-Encoding"] for request in poured} == {"identity"}
        assert {request.headers["User-Agent"] for request in poured} == {"shoal"}
        assert {request.host for request in poured} == {server.host}


async def test_nothing_is_asked_before_a_way_is_known() -> None:
    async with serving(good) as server, Upstream() as upstream:
        source, sink = upstream.blob(server.host, REPOSITORY, DIGEST), Sink()
        assert await pour(source, sink) == (False, 0)
        assert (server.asked, sink.got) == ([], b"")


async def test_where_the_rate_is_bounded_bytes_go_by_the_loop() -> None:
    pace = Pace()
    async with serving(good) as server, Upstream(pace=pace) as upstream:
        source = upstream.blob(server.host, REPOSITORY, DIGEST)
        await teach(source)
        pace.set(1e6)
        assert await pour(source, Sink()) == (False, 0)


BODY = CONTENT[FIRST:]


@pytest.mark.parametrize(
    "reply",
    [
        answer(status="200 OK") + BODY,
        answer(status="401 Unauthorized", more="WWW-Authenticate: Basic\r\n") + BODY,
        answer(status="302 Found", more="Location: http://127.0.0.1:1/\r\n") + BODY,
        answer(status="416 Range Not Satisfiable") + BODY,
        answer(status="429 Too Many Requests", more="Retry-After: 300\r\n") + BODY,
        answer(status="500 Oops") + BODY,
        answer(0, SIZE - FIRST) + BODY,
        answer(FIRST, SIZE - 1) + BODY[:-1],
        answer(total=SIZE + 1) + BODY,
        answer(more="Content-Encoding: gzip\r\n") + gzip.compress(BODY),
        answer(more="Transfer-Encoding: chunked\r\n") + b"1\r\nx\r\n0\r\n\r\n",
        b"HTTP/1.1 206 Partial Content\r\nContent-Range: bytes 1-2/3\r\n\r\n",
        b"HTTP/2 206\r\n\r\n",
        b"\r\n\r\n",
        b"HTTP/1.1 206 Partial Content\r\n" + b"X: y\r\n" * 20_000,
        b"HTTP/1.1 206 Partial Content\r\n" + b"X-%d: y\r\n" % 7 * 200 + b"\r\n",
        b"",
    ],
    ids=lambda reply: repr(reply[:40]),
)
async def test_what_is_not_just_the_range_is_asked_for_in_the_ordinary_manner(reply: bytes) -> None:
    """The sink got nothing, the guard holds nothing against the host, and the way is forgotten."""
    async with speaking(reply) as (host, asked), Upstream() as upstream:
        source, sink = upstream.blob(host, REPOSITORY, DIGEST), Sink()
        await teach(source)
        assert await pour(source, sink) == (False, 0)
        assert sink.got == b""
        count = len(asked)
        assert await pour(source, sink) == (False, 0)
        assert len(asked) == count
        assert upstream.guard.status()[host] == {"inflight": 0, "pause": 0.0, "breaker_open": False}


async def test_interim_answers_are_passed_over() -> None:
    reply = b"HTTP/1.1 103 Early Hints\r\nLink: <x>\r\n\r\n" * 2 + answer() + BODY
    async with speaking(reply) as (host, _), Upstream() as upstream:
        source, sink = upstream.blob(host, REPOSITORY, DIGEST), Sink()
        await teach(source)
        assert await pour(source, sink) == (True, 1)
        assert sink.got == BODY


@pytest.mark.parametrize("at", [0, 1, 7_000, 7_001, SIZE - FIRST - 1])
async def test_what_came_before_a_body_was_cut_short_is_kept(at: int) -> None:
    async with speaking(answer() + BODY[:at]) as (host, _), Upstream() as upstream:
        source, sink = upstream.blob(host, REPOSITORY, DIGEST), Sink()
        await teach(source)
        with pytest.raises(SourceBroken, match="cut the body short"):
            await pour(source, sink)
        assert sink.got == BODY[:at]


async def test_a_silent_body_ends_after_its_time() -> None:
    deadlines = Deadlines(stall=0.2)
    async with speaking(answer() + BODY[:9], hang=True) as (host, _), Upstream(deadlines=deadlines) as upstream:
        source, sink = upstream.blob(host, REPOSITORY, DIGEST), Sink()
        await teach(source)
        with pytest.raises(SourceBroken, match="did not answer in time"):
            await pour(source, sink)
        assert sink.got == BODY[:9]


async def test_a_host_that_has_fallen_silent_is_known_as_such() -> None:
    """As in the ordinary manner: it is watched, and nobody waits for it meanwhile."""
    deadlines = Deadlines(connect=0.3, first_byte=0.3, slow=0.9)
    async with speaking(b"", hang=True) as (host, _), Upstream(deadlines=deadlines) as up:
        source = up.blob(host, REPOSITORY, DIGEST)
        await teach(source)
        with pytest.raises(Unreachable):
            await pour(source, Sink())
        with pytest.raises(SourceBroken):
            await teach(source)


async def test_a_kept_connection_that_the_server_closed_is_replaced_unseen() -> None:
    replies = (answer() + BODY, answer() + BODY)
    async with speaking(*replies) as (host, asked), Upstream() as upstream:
        source = upstream.blob(host, REPOSITORY, DIGEST)
        await teach(source)
        for _ in replies:
            sink = Sink()
            assert await pour(source, sink) == (True, 1)
            assert sink.got == BODY
        assert len(asked) == 3
        assert KEPT_FOR < 20


async def test_cancelled_it_returns_when_no_thread_touches_the_sink() -> None:
    async with speaking(answer() + BODY[:9], hang=True) as (host, _), Upstream() as upstream:
        source, sink = upstream.blob(host, REPOSITORY, DIGEST), Sink()
        await teach(source)
        task = asyncio.create_task(pour(source, sink))
        await asyncio.to_thread(sink.came.wait, 10)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert upstream.guard.status()[host]["inflight"] == 0
        assert sink.got == BODY[:9]


async def test_what_the_sink_raises_ends_it() -> None:
    async with serving(good) as server, Upstream() as upstream:
        source = upstream.blob(server.host, REPOSITORY, DIGEST)
        await teach(source)
        with pytest.raises(StoreFull):
            await pour(source, Sink(fails=StoreFull("no room")))
        sink = Sink()
        assert await pour(source, sink) == (True, 1)
        assert sink.got == BODY


async def test_a_pause_that_upstream_asked_for_holds_for_threads() -> None:
    async with serving(good) as server, Upstream(guard=Guard()) as upstream:
        source = upstream.blob(server.host, REPOSITORY, DIGEST)
        await teach(source)
        upstream.guard.hold(server.host, 60)
        with pytest.raises(SourceBusy):
            await pour(source, Sink())
        assert len(server.asked) == 1


async def test_the_place_of_a_redirect_is_asked_without_authorization_and_the_registry_is_not() -> None:
    async def store(request: web.Request) -> web.StreamResponse:
        assert "Authorization" not in request.headers
        return ranged(request, CONTENT)

    async with redirecting(store) as (registry, stored), Upstream(credentials=Purse()) as upstream:
        source, sink = upstream.blob(registry.host, REPOSITORY, DIGEST), Sink()
        await teach(source)
        before = len(registry.asked)
        assert await pour(source, sink) == (True, 1)
        assert sink.got == BODY
        assert (len(registry.asked), len(stored.asked)) == (before, 2)


async def test_an_encrypted_way_is_verified_like_any_other(tmp_path: Path) -> None:
    """By the authority that the registry's configuration names, on the thread's own connection too."""
    authority = trustme.CA()
    authority.cert_pem.write_to_path(tmp_path / "ca.pem")
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    authority.issue_cert("127.0.0.1").configure_cert(context)
    ports: list[object] = []

    async def answer(request: web.Request) -> web.StreamResponse:
        ports.append(request.transport.get_extra_info("peername") if request.transport else None)
        return ranged(request, CONTENT)

    runner = web.AppRunner(app := web.Application(), access_log=None, shutdown_timeout=0.1)
    app.router.add_get("/{path:.*}", answer)
    await runner.setup()
    try:
        await web.TCPSite(runner, "127.0.0.1", 0, ssl_context=context).start()
        host = f"127.0.0.1:{runner.addresses[0][1]}"
        known = Registry(host, f"https://{host}", tls=Tls(ca=(tmp_path / "ca.pem",)))
        async with Upstream(Registries(configured={host: known})) as upstream:
            source = upstream.blob(host, REPOSITORY, DIGEST)
            await teach(source)
            for _ in range(2):
                sink = Sink(room=100_000)
                assert await pour(source, sink) == (True, 1)
                assert sink.got == BODY
        assert len(set(ports)) == 2, "the loop's, and a thread's, which was kept"
    finally:
        await runner.cleanup()


def test_a_head_is_read_or_refused() -> None:
    head = read_head(b"HTTP/1.0 206 OK\r\nA: b\r\nconnection: Keep-Alive")
    assert (head.status, head.keeps, head.headers["a"]) == (206, True, "b")
    assert not read_head(b"HTTP/1.0 206 OK\r\nA: b").keeps
    assert not read_head(b"HTTP/1.1 206\r\nConnection: close").keeps
    assert read_head(b"HTTP/1.1 206").keeps
    for spelled in (b"", b"206", b"HTTP/1.1 2066 x", b"GET / HTTP/1.1"):
        with pytest.raises(NotAsAsked):
            read_head(spelled)


def test_a_line_of_a_request_stays_one() -> None:
    """Whatever a registry's token or a client's header was."""
    way = Way("h", "h", (socket.AF_INET, ("127.0.0.1", 1)), AddressRules(private=True), False, None, "/x", {"A": "é"})
    assert way.request(2, 5) == "GET /x HTTP/1.1\r\nA: é\r\nRange: bytes=2-4\r\n\r\n".encode()
    for spoilt in (replace(way, path="/x\r\nB: c"), replace(way, headers={"A": "b\nC: d"})):
        with pytest.raises(NotAsAsked):
            spoilt.request(0, 1)
