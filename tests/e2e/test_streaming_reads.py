"""Range readers at Peerd's addresses: exact bytes, upstream's door, opaque files (docs/contract.md, "Streaming")."""

from __future__ import annotations

import asyncio
import json
import random
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from multidict import CIMultiDictProxy

from tests.parts.blobserver import BlobServer, blob_server
from tests.parts.counter import Rule
from tests.parts.front import Agent, agent

pytestmark = pytest.mark.needs_nginx

SIZE = 3_000_001
STEP = 64 * 1024


@dataclass
class Stream:
    """An agent and a blob server with one file that names its digest and one that does not."""

    agent: Agent
    server: BlobServer
    url: str
    digest: str
    content: bytes
    opaque: str
    opaque_content: bytes

    async def read(
        self, url: str, header: str | None = None, **headers: str
    ) -> tuple[int, CIMultiDictProxy[str], bytes]:
        """GET with a Range, through the agent."""
        sent = {"Range": header} if header else {}
        return await self.agent.ask(f"/blobs/{url}", headers=sent | headers)


@pytest.fixture
async def server(tmp_path: Path) -> AsyncIterator[BlobServer]:
    async with blob_server(tmp_path) as running:
        yield running


@pytest.fixture
async def stream(server: BlobServer, tmp_path: Path) -> AsyncIterator[Stream]:
    async with agent(tmp_path) as running:
        yield make(running, server)


def make(running: Agent, server: BlobServer) -> Stream:
    """The stream over *running*."""
    url, digest = server.add(SIZE, 41)
    opaque, _ = server.add(SIZE, 42, path="files/index.bin")
    root = server.files.root
    content = (root / f"layers/{digest}").read_bytes()
    return Stream(running, server, url, digest, content, opaque, (root / "files/index.bin").read_bytes())


@pytest.mark.parametrize("kind", ["digest", "opaque"])
@pytest.mark.parametrize(
    ("header", "status", "first", "last"),
    [
        ("bytes=0-0", 206, 0, 0),
        ("bytes=511-70000", 206, 511, 70000),
        ("bytes=262143-262144", 206, 262143, 262144),
        ("bytes=2999999-", 206, 2999999, SIZE - 1),
        ("bytes=-5", 206, SIZE - 5, SIZE - 1),
        (f"bytes=0-{SIZE * 2}", 206, 0, SIZE - 1),
        (f"bytes={SIZE}-", 416, 0, 0),
        ("bytes=0-1,4-5", 200, 0, SIZE - 1),
        (None, 200, 0, SIZE - 1),
    ],
)
async def test_every_form_of_range(
    stream: Stream, header: str | None, status: int, first: int, last: int, kind: str
) -> None:
    """206 with exactly the bytes asked and a numeric total; Peerd answers 400 to three of these."""
    url, content = (stream.url, stream.content) if kind == "digest" else (stream.opaque, stream.opaque_content)
    for target in (url, url.replace("http://", "http:/")):
        got, headers, body = await stream.agent.ask(
            f"/blobs/{target}?sig=x", headers={"Range": header} if header else {}
        )
        assert got == status
        assert headers["X-Ms-Peerd-Node"]
        assert headers["X-Ms-Peerd-Correlationid"]
        if status == 416:
            assert headers["Content-Range"] == f"bytes */{SIZE}"
            continue
        assert headers["Content-Length"] == str(last - first + 1)
        assert headers.get("Content-Range") == (f"bytes {first}-{last}/{SIZE}" if status == 206 else None)
        assert body == content[first : last + 1]


async def test_every_prefix(stream: Stream) -> None:
    """Peerd's address, DADI's and its accelerator's mean the same."""
    for prefix in ("/blobs/", "/dadip2p/", "/accelerator/"):
        status, _, body = await stream.agent.ask(f"{prefix}{stream.url}", headers={"Range": "bytes=7-9"})
        assert (status, body) == (206, stream.content[7:10])


async def test_head_tells_the_size(stream: Stream) -> None:
    """Without a body, and without the bytes of the file leaving upstream."""
    for url in (stream.url, stream.opaque):
        status, headers, body = await stream.agent.ask(f"/blobs/{url}", method="HEAD")
        assert (status, headers["Content-Length"], headers["Accept-Ranges"], body) == (200, str(SIZE), "bytes", b"")
    assert (await stream.server.counter.counts()).bytes_of("files/") < 1000


async def test_the_correlation_is_given_back(stream: Stream) -> None:
    """As Peerd's users know it; only if it is a harmless word."""
    for given, same in (("abc-123", True), ("x" * 200, False)):
        _, headers, _ = await stream.agent.ask(
            f"/blobs/{stream.url}", method="HEAD", headers={"X-MS-Peerd-CorrelationId": given}
        )
        assert (headers["X-Ms-Peerd-Correlationid"] == given) is same


@pytest.mark.parametrize("kind", ["digest", "opaque"])
async def test_a_replayed_reader(stream: Stream, kind: str) -> None:
    """Probe, header, index, unaligned reads 16 at once: always 206, exact, and one copy at most from upstream."""
    url, content = (stream.url, stream.content) if kind == "digest" else (stream.opaque, stream.opaque_content)
    chance = random.Random(3)
    reads = [(0, 1), (0, 512), (SIZE - 512, SIZE), (1_000_000, 2_000_000)]
    starts = [chance.randrange(0, SIZE - STEP) for _ in range(120)]
    reads += [(start, start + chance.randrange(1, STEP)) for start in starts]
    slots = asyncio.Semaphore(16)

    async def one(start: int, stop: int) -> None:
        async with slots:
            status, _, body = await stream.read(url, f"bytes={start}-{stop - 1}")
            assert (status, body == content[start:stop]) == (206, True)

    await asyncio.gather(*(one(start, stop) for start, stop in reads))
    counts = await stream.server.counter.counts()
    part = "layers/" if kind == "digest" else "files/"
    assert counts.bytes_of(part) <= 1.1 * SIZE


@pytest.mark.parametrize("status", [401, 403, 404, 429])
async def test_what_upstream_says_is_passed_on(stream: Stream, status: int) -> None:
    """The reader renews its token, or gives up; it must not be told that the node is broken."""
    await stream.server.counter.rules(Rule(status=status, headers={"Retry-After": "7"}))
    for url in (stream.url, stream.opaque):
        got, headers, body = await stream.read(url, "bytes=0-9")
        assert got == status
        assert json.loads(body)["errors"]
        assert headers["X-Ms-Peerd-Node"]
        await stream.server.counter.rules(Rule(status=status, headers={"Retry-After": "7"}))


@pytest.mark.parametrize(
    ("target", "status"),
    [
        ("x", 400),
        ("https://", 400),
        ("ftp://127.0.0.1/x", 400),
        ("https://user:word@127.0.0.1/x", 400),
        ("http://169.254.169.254/latest/meta-data", 403),
        ("http://example.com/x", 403),
        ("http://[::1]/x", 403),
        ("http://localhost:1/x", 403),
    ],
)
async def test_no_open_proxy(stream: Stream, target: str, status: int) -> None:
    """Only URLs, and only hosts that are on the list."""
    got, _, body = await stream.read(target, "bytes=0-9")
    assert got == status
    assert b"word" not in body


async def test_every_url_is_asked_for_once(stream: Stream) -> None:
    """The door: a new signature or Authorization is shown to upstream; the same one is remembered."""
    await stream.read(stream.url)
    held = await stream.server.counter.counts()
    asked = len(held.seen)
    for _ in range(3):
        status, _, _ = await stream.read(stream.url, "bytes=0-9")
        assert status == 206
    assert len((await stream.server.counter.counts()).seen) == asked
    for url, headers in (
        (f"{stream.url}?sig=1", {}),
        (f"{stream.url}?sig=2", {}),
        (stream.url, {"Authorization": "Bearer a"}),
        (stream.url, {"Authorization": "Bearer b"}),
    ):
        asked += 1
        for _ in range(2):
            status, _, body = await stream.read(url, "bytes=0-9", **headers)
            assert (status, body) == (206, stream.content[:10])
            assert len((await stream.server.counter.counts()).seen) == asked


async def test_bytes_on_disk_are_no_right_to_them(stream: Stream) -> None:
    """Upstream refuses another reader's signature: so do we, although everything is here."""
    await stream.read(stream.url)
    await stream.server.counter.rules(Rule(match="sig=bad", status=403))
    assert (await stream.read(f"{stream.url}?sig=bad", "bytes=0-9"))[0] == 403
    assert (await stream.read(stream.url, "bytes=0-9"))[0] == 206


async def test_upstream_down_after_a_yes(server: BlobServer, tmp_path: Path) -> None:
    """AuthCache before: what is here is served on, also when the yes is old; what was never accepted is not."""
    async with agent(tmp_path, stream_ttl=0.0) as running:
        stream = make(running, server)
        assert (await stream.read(stream.url))[0] == 200
        await server.counter.rules(Rule(status=500))
        for _ in range(3):
            status, _, body = await stream.read(stream.url, "bytes=100-199")
            assert (status, body) == (206, stream.content[100:200])


async def test_a_yes_outlives_a_restart(server: BlobServer, tmp_path: Path) -> None:
    """Upstream goes down, then the agent is restarted: who was accepted reads on, and nobody else. What is kept on
    disk for that holds neither URL nor credentials."""
    async with agent(tmp_path) as running:
        stream = make(running, server)
        assert (await stream.read(f"{stream.url}?sig=topsecret", Authorization="Bearer topsecret2"))[0] == 200
    await server.counter.rules(Rule(status=500))
    async with agent(tmp_path) as running:
        stream = Stream(running, server, stream.url, stream.digest, stream.content, "", b"")
        status, _, body = await stream.read(
            f"{stream.url}?sig=topsecret", "bytes=100-199", Authorization="Bearer topsecret2"
        )
        assert (status, body) == (206, stream.content[100:200])
        for url, authorization in ((f"{stream.url}?sig=topsecret", ""), (stream.url, "Bearer topsecret2")):
            assert (await stream.read(url, "bytes=0-9", **({"Authorization": authorization} if authorization else {})))[
                0
            ] == 503
    kept = (tmp_path / "store" / "door").read_bytes()
    assert b"topsecret" not in kept
    assert stream.digest.encode() not in kept
    (tmp_path / "store" / "door").write_bytes(kept[:-5])
    async with agent(tmp_path) as running:
        assert (await running.ask("/v2/"))[0] == 200


async def test_upstream_hangs_after_a_yes(server: BlobServer, tmp_path: Path) -> None:
    """Nobody who was accepted waits for an upstream that does not answer."""
    async with agent(tmp_path, stream_ttl=0.0) as running:
        stream = make(running, server)
        assert (await stream.read(stream.url))[0] == 200
        await server.counter.rules(Rule(delay=60.0))
        status, _, body = await stream.read(stream.url, "bytes=100-199")
        assert (status, body) == (206, stream.content[100:200])
        assert not all(seen.done for seen in (await server.counter.counts()).seen)


async def test_a_node_can_be_trusted(server: BlobServer, tmp_path: Path) -> None:
    """With that setting nobody is asked about what is here."""
    async with agent(tmp_path, stream_trust_node=True) as running:
        stream = make(running, server)
        assert (await stream.read(stream.url))[0] == 200
        await server.counter.rules(Rule(status=403))
        assert (await stream.read(f"{stream.url}?sig=any", "bytes=0-9"))[0] == 206


async def test_files_without_a_digest_are_never_mixed(stream: Stream) -> None:
    """By scheme, host and path: two paths are two files; the same path again is read from disk."""
    other, _ = stream.server.add(SIZE, 43, path="files/other.bin")
    truth = (stream.server.files.root / "files/other.bin").read_bytes()
    for _ in range(2):
        assert (await stream.read(stream.opaque, "bytes=5-99"))[2] == stream.opaque_content[5:100]
        assert (await stream.read(other, "bytes=5-99"))[2] == truth[5:100]
    counts = await stream.server.counter.counts()
    assert len(counts.of("files/index.bin")) == 2  # the door and one block
    assert stream.agent.front.registry.bodies.swarm.status()["fetches"] == []


async def test_a_file_that_changes_under_its_url(server: BlobServer, tmp_path: Path) -> None:
    """Old and new bytes are never mixed: after the TTL everything is read anew."""
    async with agent(tmp_path, stream_ttl=0.0) as running:
        stream = make(running, server)
        assert (await stream.read(stream.opaque, "bytes=0-9"))[2] == stream.opaque_content[:10]
        server.add(SIZE - 1, 44, path="files/index.bin")
        truth = (server.files.root / "files/index.bin").read_bytes()
        status, _, body = await stream.read(stream.opaque)
        assert (status, body == truth) == (200, True)


async def test_no_room_for_files_without_a_digest(server: BlobServer, tmp_path: Path) -> None:
    """They are passed through; nothing fails, and the bound holds."""
    async with agent(tmp_path, stream_cache=512 * 1024) as running:
        stream = make(running, server)
        status, _, body = await stream.read(stream.opaque)
        assert (status, body == stream.opaque_content) == (200, True)
        status, _, body = await stream.read(stream.opaque, "bytes=100-199")
        assert (status, body) == (206, stream.opaque_content[100:200])
        assert running.front.streaming.opaque.held <= 512 * 1024


@pytest.mark.parametrize("then", ["cut", "hang"])
async def test_an_upstream_that_breaks_off(stream: Stream, then: str) -> None:
    """In mid-window: asked again from there; the reader has its bytes."""
    await stream.server.counter.rules(Rule(match="layers/", after=100_000, then=then, times=1, skip=1))
    status, _, body = await stream.read(stream.url, "bytes=0-999999")
    assert (status, body == stream.content[:1_000_000]) == (206, True)


async def test_secrets_appear_nowhere(stream: Stream, caplog: pytest.LogCaptureFixture) -> None:
    """Neither in logs nor in metrics nor in errors: query and Authorization."""
    caplog.set_level("DEBUG")
    await stream.server.counter.rules(Rule(match="sig=topsecret2", status=403))
    texts = []
    for url in (stream.url, stream.opaque):
        for query in ("sig=topsecret1", "sig=topsecret2"):
            _, headers, body = await stream.read(f"{url}?{query}", "bytes=0-9", Authorization="Bearer topsecret3")
            texts += [str(headers), body.decode("latin-1")]
    from prometheus_client import generate_latest

    texts.append(generate_latest(stream.agent.front.metrics.registry).decode())
    texts += [f"{record.getMessage()} {getattr(record, 'fields', '')}" for record in caplog.records]
    assert not [text for text in texts if "topsecret" in text]
