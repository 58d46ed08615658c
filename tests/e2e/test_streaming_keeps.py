"""What is kept of blobs that are read in ranges, and for whom: over kill -9, over bulk pulls, over time."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from swarm.blob.geometry import geometry
from swarm.storage.sidecar import HEADER, RECORD
from tests.parts.blobserver import BlobServer, blob_server
from tests.parts.cluster import Agent, Cluster, cluster
from tests.parts.counter import Rule
from tests.parts.fetch import Fetched, fetch

pytestmark = [pytest.mark.needs_nginx, pytest.mark.timeout(120)]

KIB, MIB = 1024, 1024 * 1024
STEP = 64 * KIB
SIZE = 24 * MIB


@pytest.fixture
async def server(tmp_path: Path) -> AsyncIterator[BlobServer]:
    async with blob_server(tmp_path) as running:
        yield running


@pytest.fixture
async def two(tmp_path: Path) -> AsyncIterator[Cluster]:
    flags = ["--blob-host=127.0.0.1:*", "--stream-trust-node"]
    async with cluster(tmp_path, agents=2, flags=flags) as running:
        yield running


async def read(agent: Agent, url: str, start: int, stop: int) -> Fetched:
    """Bytes [start, stop) of *url* through *agent*."""
    return await fetch(f"{agent.url}/blobs/{url}", {"Range": f"bytes={start}-{stop - 1}"}, deadline=30)


def held(server: BlobServer, digest: str) -> bytes:
    """The bytes of *digest*."""
    return (server.files.root / "layers" / digest).read_bytes()


def windows_at(*offsets: int) -> int:
    """Bytes of the windows that hold the bytes at *offsets*."""
    return sum(geometry(SIZE).window_at(offset).length for offset in offsets)


async def written_down(agent: Agent, server: BlobServer, digest: str, sent: int) -> None:
    """Until *sent* bytes of *digest* left upstream and *agent* has written down which pieces of them it has."""
    await server.counter.counts(part=digest, sent=sent)
    log = agent.store / "staging" / f"{digest.removeprefix('sha256:')}.log"
    async with asyncio.timeout(10):
        while log.stat().st_size < HEADER + RECORD * (sent // (256 * KIB)):  # noqa: ASYNC110 - another process's disk
            await asyncio.sleep(0.01)


async def test_a_partial_blob_survives_kill_9(two: Cluster, server: BlobServer) -> None:
    """What was read is served after a restart without tracker, upstream and peers: also its size is known. What was
    not read is an answer that says so, not a hang."""
    url, digest = server.add(SIZE, 600)
    content = held(server, digest)
    agent = two.agents[0]
    places = (0, 9 * MIB + 77, SIZE - STEP)
    for start in places:
        assert (await read(agent, url, start, start + STEP)).status == 206
    await written_down(agent, server, digest, windows_at(*places))
    await agent.kill()
    await two.tracker.kill()
    await two.agents[1].kill()
    await server.counter.process.kill()
    await agent.start(joined=False)
    for start in places:
        got = await read(agent, url, start, start + STEP)
        assert (got.status, got.body) == (206, content[start : start + STEP])
        assert got.headers["content-range"] == f"bytes {start}-{start + STEP - 1}/{SIZE}"
    head = await fetch(f"{agent.url}/blobs/{url}", method="HEAD")
    assert (head.status, head.headers["content-length"]) == (200, str(SIZE))
    missing = await read(agent, url, 5 * MIB, 5 * MIB + STEP)
    assert missing.status == 503 or not missing.whole


async def test_what_was_read_in_ranges_is_not_asked_for_again(two: Cluster, server: BlobServer) -> None:
    """By the same node after kill -9, and by another one: only what is new leaves upstream."""
    url, digest = server.add(SIZE, 610)
    content = held(server, digest)
    agent, other = two.agents
    assert (await read(agent, url, 0, STEP)).status == 206
    assert (await read(agent, url, 10 * MIB, 10 * MIB + STEP)).status == 206
    await written_down(agent, server, digest, windows_at(0, 10 * MIB))
    await agent.kill()
    await agent.start()
    sent = (await server.counter.counts()).bytes_of("layers/")
    for reader in (agent, other):
        for start in (3, 10 * MIB + 3, 10 * MIB + STEP):
            got = await read(reader, url, start, start + STEP)
            assert (got.status, got.body) == (206, content[start : start + STEP])
    assert (await server.counter.counts()).bytes_of("layers/") == sent
    assert (await other.metrics())["shoal_swarm_received_bytes_total{source=peer}"] > 0


@pytest.mark.parametrize("same", [True, False], ids=["same-blob", "other-blob"])
async def test_a_read_does_not_wait_behind_a_bulk_pull(same: bool, two: Cluster, server: BlobServer) -> None:
    """Upstream is slow, and a pull has all the claims that it wants: reads all over a blob are answered first."""
    bulk, digest = server.add(SIZE, 620)
    url, digest = (bulk, digest) if same else server.add(SIZE, 621)
    content = held(server, digest)
    agent = two.agents[0]
    await server.counter.shape(connection=MIB)
    pull = asyncio.create_task(fetch(f"{agent.url}/blobs/{bulk}", deadline=60))
    await server.counter.counts(part="layers/", sent=2 * MIB)
    for start in (20 * MIB, 23 * MIB):
        got = await read(agent, url, start, start + STEP)
        assert (got.status, got.body) == (206, content[start : start + STEP])
        print(f"{got.seconds:.2f} s beside a pull that has {len(await pulled(agent))} windows on their way")
        assert not pull.done()
    await server.counter.shape()
    assert (await pull).status == 200
    sent = (await server.counter.counts()).bytes_of("layers/")
    assert sent <= 1.02 * SIZE + (0 if same else 5 * MIB)  # window 0, for the size, and one for each read


async def pulled(agent: Agent) -> list[int]:
    """The windows that *agent* brings in now."""
    return [window for fetch in (await agent.status())["fetches"] for window in fetch["claims"]]


async def test_an_upstream_that_fails_for_a_while_is_waited_for(two: Cluster, server: BlobServer) -> None:
    """Slow is better than an error: a reader forgives 30 s, and no 5xx."""
    url, digest = server.add(SIZE, 630)
    await server.counter.rules(Rule(match="layers/", status=503, times=4))
    got = await read(two.agents[0], url, 5 * MIB, 5 * MIB + STEP)
    assert (got.status, got.body) == (206, held(server, digest)[5 * MIB : 5 * MIB + STEP])
    await server.counter.rules(Rule(match="layers/", status=503, times=4))
    got = await read(two.agents[0], url, 15 * MIB, 15 * MIB + STEP)
    assert (got.status, got.body) == (206, held(server, digest)[15 * MIB : 15 * MIB + STEP])


async def test_a_window_that_comes_slowly_does_not_keep_a_reader_waiting(two: Cluster, server: BlobServer) -> None:
    """Another node brings the window in at a crawl that is still progress: the reader's own piece is asked past it."""
    url, digest = server.add(SIZE, 640)
    content = held(server, digest)
    slow, agent = two.agents
    for one in two.agents:
        assert (await read(one, url, 0, STEP)).status == 206
    await server.counter.shape(connection=80 * KIB)
    waiting = asyncio.create_task(read(slow, url, 10 * MIB, 10 * MIB + STEP))
    await server.counter.counts(part="layers/", sent=MIB + 64 * KIB)
    await server.counter.shape()  # for whoever asks from now on: the first request keeps its crawl
    start = 12 * MIB - STEP
    got = await read(agent, url, start, start + STEP)
    assert (got.status, got.body) == (206, content[start : start + STEP])
    assert (await waiting).status == 206
    print(f"{got.seconds:.1f} s")


async def test_the_whole_file_is_brought_in_behind_the_first_read(two: Cluster, server: BlobServer) -> None:
    """Prefetch: bounded in rate, after every reader, and never at the cost of what is kept already."""
    url, digest = server.add(SIZE, 650)
    other, digest_of_other = server.add(SIZE, 651)
    flags = ("--blob-host=127.0.0.1:*", "--stream-prefetch", "--stream-prefetch-rate=8MiB")
    agent = await two.add(*flags, "--store-budget=40MiB", name="eager")
    assert (await read(agent, url, 5 * MIB, 5 * MIB + STEP)).status == 206
    await server.counter.counts(part=digest, sent=4 * MIB)
    for start in (23 * MIB, 12 * MIB):
        got = await read(agent, url, start, start + STEP)
        assert (got.status, got.body) == (206, held(server, digest)[start : start + STEP])
    await server.counter.counts(part=digest, sent=SIZE)
    async with asyncio.timeout(20):
        while not (agent.store / "blobs/sha256" / digest.removeprefix("sha256:")).exists():  # noqa: ASYNC110
            await asyncio.sleep(0.01)
    assert (await server.counter.counts()).bytes_of(digest) <= 1.02 * SIZE
    # Of the next file only what fits beside the first comes unasked.
    assert (await read(agent, other, 0, STEP)).status == 206
    await server.counter.counts(part=digest_of_other, sent=8 * MIB)
    assert (await agent.status())["store"]["bytes"] <= 40 * MIB
    assert (agent.store / "blobs/sha256" / digest.removeprefix("sha256:")).exists()
