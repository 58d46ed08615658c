"""Clients that misbehave, hurry or leave: nobody else notices, and nobody gets a wrong complete body."""

from __future__ import annotations

import asyncio
import hashlib
import json
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
from aiohttp.http_exceptions import HttpProcessingError

from mirror.front import bodies
from swarm.blob.digest import Digest
from swarm.blob.errors import BlobCorrupt, BlobUnavailable, SourceBroken, StoreFull
from tests.parts import data
from tests.parts.counter import Counter, Rule
from tests.parts.front import Agent, FileSwarm, agent, file_agent
from tests.parts.registry import Registry

SIZE = 9_000_001


@pytest.fixture(autouse=True)
def quiet(caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    """Whatever a client does is no defect of ours: nothing is logged with a traceback but what is no HTTP."""
    yield
    raised = [record.exc_info[1] for record in caplog.get_records("call") if record.exc_info]
    assert not [error for error in raised if not isinstance(error, HttpProcessingError)]


@dataclass
class Files:
    """A front end over files, with one blob."""

    agent: Agent
    swarm: FileSwarm
    content: bytes
    digest: Digest

    @property
    def path(self) -> str:
        """The blob at the mirror; its registry does not exist."""
        return f"/v2/a/b/blobs/{self.digest}?ns=127.0.0.1:1"


@pytest.fixture(scope="module")
def content() -> bytes:
    return data.blob(SIZE, 5)


@pytest.fixture
async def files(content: bytes, tmp_path: Path) -> AsyncIterator[Files]:
    async with file_agent(tmp_path) as (running, swarm):
        yield Files(running, swarm, content, swarm.add(content))


@asynccontextmanager
async def connection(running: Agent) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
    """A TCP connection to the front end."""
    reader, writer = await asyncio.open_connection("127.0.0.1", running.port)
    try:
        yield reader, writer
    finally:
        writer.transport.abort()
        await asyncio.sleep(0)


async def head_of(reader: asyncio.StreamReader) -> dict[str, str]:
    """The head of an answer; the status under ""."""
    lines = (await reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")
    headers = {name.title(): value.strip() for name, _, value in (line.partition(":") for line in lines[1:] if line)}
    return {"": lines[0].split()[1], **headers}


def request(path: str, *lines: str) -> bytes:
    """A GET as bytes."""
    return "\r\n".join([f"GET {path} HTTP/1.1", "Host: 127.0.0.1", *lines, "", ""]).encode()


# -- leaving -------------------------------------------------------------------------------------


@pytest.mark.parametrize("after", [0, 1, 100, 64 * 1024, 300_000, 1_000_000, SIZE - 1])
async def test_a_client_that_leaves(files: Files, after: int) -> None:
    """At any byte of the body: its reader is gone, and the next client is served."""
    async with connection(files.agent) as (reader, writer):
        writer.write(request(files.path))
        await head_of(reader)
        if after:
            await reader.readexactly(after)
    await files.agent.idle()
    assert files.swarm.open_now == 0
    assert files.swarm.blobs[files.digest].readers == 0
    status, _, body = await files.agent.ask(files.path)
    assert (status, body == files.content) == (200, True)


async def test_a_client_that_leaves_before_the_answer(files: Files) -> None:
    """In the middle of its request, and right after it."""
    whole = request(files.path)
    for part in (b"", b"G", whole[:20], whole[:-1], whole):
        async with connection(files.agent) as (_, writer):
            writer.write(part)
            await writer.drain()
    await files.agent.idle()
    assert files.swarm.open_now == 0


async def test_a_client_that_leaves_while_bytes_are_awaited(files: Files) -> None:
    """Nothing can be sent, so nothing fails: the disconnect alone ends the reader."""
    blob = files.swarm.blobs[files.digest]
    blob.fails_at, blob.gate = 500_000, asyncio.Event()
    async with connection(files.agent) as (reader, writer):
        writer.write(request(files.path))
        await head_of(reader)
        await reader.readexactly(500_000)
        assert blob.readers == 1
    await files.agent.idle()
    assert (files.swarm.open_now, blob.readers) == (0, 0)


@pytest.mark.needs_registry
async def test_clients_that_leave_while_upstream_is_still_sending(
    origin: Registry, upstream: Counter, tmp_path: Path
) -> None:
    """A whole agent, nothing on disk, a slow upstream: one client after the other leaves a bit later than the one
    before. What they brought in is not asked for again, and nothing goes on for nobody."""
    content = data.blob(3_000_000, 35)
    blob = await origin.push_blob("leave/app", content)
    await upstream.shape(total=6_000_000)
    async with agent(tmp_path) as running:
        path = f"/v2/leave/app/blobs/{blob.digest}?ns={upstream.host}"

        async def leave(after: int) -> None:
            async with connection(running) as (reader, writer):
                writer.write(request(path))
                if after >= 0:
                    await head_of(reader)
                    await reader.readexactly(after)

        for after in (-1, 0, 1, 70_000, 400_000, 1_100_000, 2_000_000, len(content) - 70_000):
            await leave(after)
        await asyncio.gather(*(leave(after) for after in range(0, len(content), 500_000)))
        await running.idle()
        swarm = running.front.registry.bodies.swarm
        assert [fetch["readers"] for fetch in swarm.status()["fetches"]] in ([], [0])
        status, _, body = await running.ask(path)
        assert (status, body == content) == (200, True)
    assert (await upstream.counts()).bytes_of("blobs") <= 1.02 * len(content)


async def test_a_client_that_stops_reading_keeps_nobody_else_waiting(files: Files) -> None:
    """It holds its own connection and no more."""
    async with connection(files.agent) as (reader, writer):
        writer.write(request(files.path))
        await head_of(reader)
        for _ in range(3):
            status, _, body = await files.agent.ask(files.path)
            assert (status, body == files.content) == (200, True)
    await files.agent.idle()


# -- failing -------------------------------------------------------------------------------------


@pytest.mark.parametrize("at", [1, 64 * 1024, 262_144, SIZE - 1])
@pytest.mark.parametrize("failure", [BlobCorrupt("wrong"), SourceBroken("gone"), BlobUnavailable("gone")])
async def test_a_failure_in_the_body_cuts_the_connection(files: Files, at: int, failure: Exception) -> None:
    """The client has fewer bytes than Content-Length says: never a complete wrong body."""
    blob = files.swarm.blobs[files.digest]
    blob.fails_at, blob.failure = at, failure  # type: ignore[assignment]
    async with connection(files.agent) as (reader, writer):
        writer.write(request(files.path))
        head = await head_of(reader)
        assert (head[""], head["Content-Length"]) == ("200", str(SIZE))
        body = b""
        with pytest.raises(asyncio.IncompleteReadError):
            body = await _rest(reader, SIZE)
        assert len(body) < SIZE
    await files.agent.idle()


@pytest.mark.parametrize(("before", "status"), [(False, 404), (True, 503)])
async def test_a_failure_before_the_first_byte_is_an_answer(
    files: Files, before: bool, status: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The size was known, the bytes are not to be had: containerd is told so, and does not wait for a body. If it got
    a part of this blob before, that is tried again for a while, and is no 404 then."""
    monkeypatch.setattr(bodies, "PERSIST", 0.6)
    if before:
        await files.agent.ask(files.path, headers={"Range": "bytes=0-9"})
    blob = files.swarm.blobs[files.digest]
    blob.fails_at, blob.failure = 10, BlobUnavailable("the last one who had it is gone")
    got, headers, body = await files.agent.ask(files.path, headers={"Range": "bytes=10-99"})
    assert (got, headers["Content-Type"]) == (status, "application/json")
    assert json.loads(body)["errors"]
    await files.agent.idle()
    assert (files.swarm.open_now, blob.readers) == (0, 0)
    assert files.swarm.opened >= (4 if before else 1)


async def _rest(reader: asyncio.StreamReader, count: int) -> bytes:
    try:
        return await reader.readexactly(count)
    except ConnectionError:
        raise asyncio.IncompleteReadError(b"", count) from None


async def test_after_the_first_byte_there_is_no_404(files: Files) -> None:
    """A later range of a blob that was begun: tried again, then 503; containerd gives the whole pull up over a 404."""
    status, _, _ = await files.agent.ask(files.path, headers={"Range": "bytes=0-9"})
    assert status == 206
    files.swarm.refuse = BlobUnavailable("for a moment")
    asking = asyncio.create_task(files.agent.ask(files.path, headers={"Range": "bytes=10-19"}))
    async with asyncio.timeout(10):
        while files.swarm.opened < 3:  # noqa: ASYNC110  # counts of the swarm are no events
            await asyncio.sleep(0.01)
    files.swarm.refuse = None
    status, _, body = await asking
    assert (status, body) == (206, files.content[10:20])


async def test_a_full_store_is_passed_through(origin: Registry, upstream: Counter, tmp_path: Path) -> None:
    """Whole bodies and ranges, straight from upstream, and right."""
    content = data.blob(800_000, 31)
    blob = await origin.push_blob("full/app", content)
    path = f"/v2/full/app/blobs/{blob.digest}?ns={upstream.host}"
    async with file_agent(tmp_path) as (running, swarm):
        swarm.refuse = StoreFull("no room")
        for header, status, expected in (
            (None, 200, content),
            ("bytes=5-99", 206, content[5:100]),
            ("bytes=700000-", 206, content[700_000:]),
            ("bytes=-3", 206, content[-3:]),
        ):
            got, headers, body = await running.ask(path, headers={"Range": header} if header else {})
            assert (got, body == expected, headers["Content-Length"]) == (status, True, str(len(expected)))
        got, headers, body = await running.ask(path, method="HEAD")
        assert (got, headers["Content-Length"], body) == (200, "800000", b"")
        await upstream.rules(Rule(match="blobs", after=700_000, then="flip"))
        async with connection(running) as (reader, writer):
            writer.write(request(path))
            assert (await head_of(reader))[""] == "200"
            with pytest.raises(asyncio.IncompleteReadError):
                await _rest(reader, 800_000)


async def test_a_store_that_fills_up_in_the_body(origin: Registry, upstream: Counter, tmp_path: Path) -> None:
    """The rest comes past the store: P8, a full disk means pass-through."""
    content = data.blob(900_000, 32)
    blob = await origin.push_blob("full/app", content)
    path = f"/v2/full/app/blobs/{blob.digest}?ns={upstream.host}"
    async with file_agent(tmp_path) as (running, swarm):
        digest = swarm.add(content)
        swarm.blobs[digest].fails_at, swarm.blobs[digest].failure = 300_000, StoreFull("full")
        for header, expected in ((None, content), ("bytes=100-", content[100:])):
            _, _, body = await running.ask(path, headers={"Range": header} if header else {})
            assert body == expected


# -- many, and fast ------------------------------------------------------------------------------


async def test_200_pulls_at_once(files: Files) -> None:
    """All right, all complete."""
    small = data.blob(400_000, 6)
    digest = files.swarm.add(small)
    answers = await asyncio.gather(*(files.agent.ask(f"/v2/a/blobs/{digest}?ns=127.0.0.1:1") for _ in range(200)))
    assert all(status == 200 and body == small for status, _, body in answers)
    await files.agent.idle()
    assert files.swarm.open_now == 0


@pytest.mark.needs_registry
async def test_200_cold_pulls_are_one_copy(origin: Registry, upstream: Counter, tmp_path: Path) -> None:
    """A whole agent, nothing on disk, 200 clients for one blob."""
    content = data.blob(2_000_000, 33)
    blob = await origin.push_blob("many/app", content)
    async with agent(tmp_path) as running:
        path = f"/v2/many/app/blobs/{blob.digest}?ns={upstream.host}"
        answers = await asyncio.gather(*(running.ask(path) for _ in range(200)))
        assert all(status == 200 and body == content for status, _, body in answers)
    assert (await upstream.counts()).bytes_of("blobs") <= 1.02 * len(content)


async def test_more_requests_than_the_bound(files: Files) -> None:
    """503 with Retry-After at once, and no hang; the others are served."""
    files.agent.front.most = 2
    blob = files.swarm.blobs[files.digest]
    blob.fails_at, blob.gate = 0, asyncio.Event()
    waiting = [asyncio.create_task(files.agent.ask(files.path)) for _ in range(2)]
    async with asyncio.timeout(10):
        while blob.readers < 2:  # noqa: ASYNC110  # counts of the swarm are no events
            await asyncio.sleep(0.005)
    status, headers, _ = await files.agent.ask(files.path)
    assert (status, headers["Retry-After"]) == (503, "1")
    blob.gate.set()
    assert [answer[0] for answer in await asyncio.gather(*waiting)] == [200, 200]


@pytest.mark.needs_registry
async def test_parallel_open_ended_ranges(origin: Registry, upstream: Counter, tmp_path: Path) -> None:
    """Containerd 2.1 and later: `bytes=N-` for every chunk at once, one chunk is read, the connection dropped."""
    content, chunk = data.blob(6_000_000, 34), 1_000_000
    blob = await origin.push_blob("parallel/app", content)
    async with agent(tmp_path) as running:
        path = f"/v2/parallel/app/blobs/{blob.digest}?ns={upstream.host}"

        async def part(start: int) -> bytes:
            async with connection(running) as (reader, writer):
                writer.write(request(path, f"Range: bytes={start}-"))
                head = await head_of(reader)
                assert (head[""], head["Content-Range"]) == ("206", f"bytes {start}-{len(content) - 1}/{len(content)}")
                return await reader.readexactly(min(chunk, len(content) - start))

        parts = await asyncio.gather(*(part(start) for start in range(0, len(content), chunk)))
        assert hashlib.sha256(b"".join(parts)).hexdigest() == blob.digest.removeprefix("sha256:")
        await running.idle()
    assert (await upstream.counts()).bytes_of("blobs") <= 1.1 * len(content)


# -- HTTP as it should not be --------------------------------------------------------------------


async def test_pipelined_requests_are_answered_in_order(files: Files) -> None:
    """50 ranges in one write: 50 answers, each with its own bytes."""
    async with connection(files.agent) as (reader, writer):
        writer.write(b"".join(request(files.path, f"Range: bytes={i * 1000}-{i * 1000 + 99}") for i in range(50)))
        for index in range(50):
            head = await head_of(reader)
            assert head[""] == "206"
            body = await reader.readexactly(int(head["Content-Length"]))
            assert body == files.content[index * 1000 : index * 1000 + 100]


async def test_a_flood_of_pipelined_requests_is_not_queued_up(files: Files) -> None:
    """10 000 requests on one connection whose answers nobody reads: one at a time is worked on."""
    async with connection(files.agent) as (_, writer):
        writer.write(request(files.path) * 10_000)
        for _ in range(5):
            assert files.agent.front.under_way <= 1
            status, _, body = await files.agent.ask(files.path, headers={"Range": "bytes=0-9"})
            assert (status, body) == (206, files.content[:10])
    await files.agent.idle()
    assert files.swarm.open_now == 0


@pytest.mark.parametrize(
    "garbage",
    [
        b"\x16\x03\x01\x02\x00\x01\x00\x01",
        b"GET\r\n\r\n",
        b"GET /v2/ HTTP/9.9\r\n\r\n",
        b"GET /v2/ HTTP/1.1\r\nContent-Length: x\r\n\r\n",
        b"GET /v2/ HTTP/1.1\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n",
        b"GET /" + b"x" * 100_000 + b" HTTP/1.1\r\n\r\n",
        b"GET /v2/ HTTP/1.1\r\n" + b"X: y\r\n" * 10_000 + b"\r\n",
    ],
)
async def test_garbage_ends_its_own_connection_only(files: Files, garbage: bytes) -> None:
    """A 400 or a closed connection; the next client is served."""
    async with connection(files.agent) as (reader, writer):
        writer.write(garbage)
        with_answer = await _until_end(reader)
        assert not with_answer or b" 400 " in with_answer.split(b"\r\n")[0]
    status, _, _ = await files.agent.ask("/v2/")
    assert status == 200


async def _until_end(reader: asyncio.StreamReader) -> bytes:
    try:
        async with asyncio.timeout(10):
            return await reader.read()
    except ConnectionError:
        return b""


async def test_a_large_upload_is_not_read(files: Files) -> None:
    """Push is refused at once, whatever is still to come."""
    async with connection(files.agent) as (reader, writer):
        writer.write(
            b"POST /v2/a/blobs/uploads/ HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: 1000000000000\r\n\r\n"
            + b"x" * 1000
        )
        head = await head_of(reader)
        assert head[""] == "405"


async def test_a_request_that_names_scheme_and_host(files: Files) -> None:
    """RFC 9112, 3.2.2: servers accept the absolute form; it is not a request to proxy, and its host must be ours."""
    async with connection(files.agent) as (reader, writer):
        writer.write(request(f"http://localhost{files.path}", "Range: bytes=0-4"))
        head = await head_of(reader)
        assert head[""] == "206"
        assert await reader.readexactly(5) == files.content[:5]
    async with connection(files.agent) as (reader, writer):
        writer.write(request(f"http://other.example{files.path}", "Range: bytes=0-4"))
        assert (await head_of(reader))[""] == "403"


@pytest.mark.parametrize("path", ["/", "/v3/", "/metrics", "/favicon.ico", "/v2x", "//v2/"])
async def test_other_paths_are_not_found(files: Files, path: str) -> None:
    """With the API's own document."""
    status, headers, _ = await files.agent.ask(path)
    assert (status, headers["Content-Type"]) == (404, "application/json")
