"""The table of docs/contract.md, "What Peerd does, measured", row by row: what Shoal does in the same case."""

from __future__ import annotations

import asyncio
import os
import random
import signal
from collections.abc import AsyncIterator, Iterator
from functools import partial
from pathlib import Path

import msgspec
import pytest
import pytest_asyncio

from mirror.front.readahead import FIRST_AHEAD
from swarm.storage.store import Store
from tests.parts.blobserver import BlobServer, blob_server
from tests.parts.cluster import Agent, Cluster, cluster
from tests.parts.counter import Counter, Rule
from tests.parts.fetch import Fetched, fetch
from tests.parts.front import agent as sole_agent
from tests.parts.registry import Registry
from tests.parts.storing import fill, small_file_system

pytestmark = [pytest.mark.needs_nginx, pytest.mark.timeout(150)]

KIB, MIB = 1024, 1024 * 1024
STEP = 64 * KIB
BUDGET = 30.0
"""Seconds that overlaybd waits for one read."""


@pytest.fixture
async def server(tmp_path: Path) -> AsyncIterator[BlobServer]:
    async with blob_server(tmp_path) as running:
        yield running


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def sixteen(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Cluster]:
    """Sixteen agents for the rows that break nothing."""
    flags = ["--blob-host=127.0.0.1:*"]
    async with cluster(tmp_path_factory.mktemp("sixteen"), agents=16, flags=flags) as running:
        yield running


@pytest.fixture
async def two(tmp_path: Path) -> AsyncIterator[Cluster]:
    """Two agents that a test may break."""
    async with cluster(tmp_path, agents=2, flags=["--blob-host=127.0.0.1:*"]) as running:
        yield running


def held(server: BlobServer, url: str) -> bytes:
    """The bytes behind *url*."""
    return (server.files.root / url.removeprefix(f"{server.url}/")).read_bytes()


async def read(agent: Agent, url: str, start: int, stop: int) -> Fetched:
    """Bytes [start, stop) of *url* through *agent*."""
    headers = {"Range": f"bytes={start}-{stop - 1}"}
    return await fetch(f"{agent.url}/blobs/{url}", headers, deadline=BUDGET)


def right(got: Fetched, content: bytes, start: int, stop: int) -> bool:
    """Whether *got* is exactly the range, at most 64 KiB of it."""
    return (got.status, got.whole, got.body) == (206, True, content[start:stop])


async def settled(server: BlobServer) -> None:
    """Until nothing is on its way from upstream: a read has its bytes before their window is complete."""
    async with asyncio.timeout(20):
        before = -1
        while (now := await server.counter.counts()).sent != before or not all(seen.done for seen in now.seen):
            before = now.sent


async def count(agent: Agent, name: str) -> float:
    """A counter of *agent*."""
    return (await agent.metrics()).get(name, 0.0)


@pytest.mark.parametrize("nodes", [8, 16])
async def test_nodes_ask_for_one_16_mib_file_at_once(nodes: int, sixteen: Cluster, server: BlobServer) -> None:
    """Peerd: 5.4-7.9 copies from upstream at 8 nodes and a stall of 90 s, 11.5 copies at 16. Here: one copy, and
    nobody waited for a timer. What latency costs is the door: one byte per node."""
    url, digest = server.add(16 * MIB, 900 + nodes)
    agents = sixteen.agents[:nodes]
    before = [await count(agent, "shoal_swarm_stalls_total") for agent in agents]
    told = await asyncio.gather(*(fetch(f"{a.url}/blobs/{url}", {"Range": "bytes=0-"}) for a in agents))
    assert [(t.status, t.digest, t.whole) for t in told] == [(206, digest, True)] * nodes
    sent = (await server.counter.counts()).bytes_of("layers/")
    print(f"{nodes} nodes: {sent / (16 * MIB):.3f} copies, slowest {max(t.seconds for t in told):.2f} s")
    assert sent <= 1.02 * 16 * MIB
    assert [await count(agent, "shoal_swarm_stalls_total") for agent in agents] == before


@pytest.mark.needs_registry
async def test_image_pull_that_nobody_has(sixteen: Cluster, origin: Registry, upstream: Counter) -> None:
    """Peerd: 404 after a full second, N copies from upstream. Here: the blob, one copy."""
    blob = origin.plant("peerd/nobody", 8 * MIB, 910)
    told = await sixteen.pull(blob, upstream.host, sixteen.agents[:8])
    assert [(t.status, t.digest) for t in told] == [(200, blob.digest)] * 8
    assert (await upstream.counts()).bytes_of(blob.repository) <= 1.02 * blob.size


async def test_corrupt_peer(two: Cluster, server: BlobServer) -> None:
    """Peerd: its bytes were served, cached, announced and passed on. Here: none of them leaves an agent, and the
    peer is named."""
    url, digest = server.add(4 * MIB, 920)
    content = held(server, url)
    rotten, reader = two.agents
    assert (await fetch(f"{rotten.url}/blobs/{url}")).digest == digest
    path = rotten.store / "blobs/sha256" / digest.removeprefix("sha256:")
    async with asyncio.timeout(10):
        while not path.exists():  # noqa: ASYNC110 - another process's disk: no event of ours
            await asyncio.sleep(0.01)
    assert await rotten.stop() == 0
    before = path.stat()
    with path.open("r+b", buffering=0) as file:
        for offset in range(1000, 4 * MIB, 256 * KIB):
            os.pwrite(file.fileno(), b"rotten", offset)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    await rotten.start()
    for start in (0, 900_000, 2_000_000, 4 * MIB - STEP):
        assert right(await read(reader, url, start, start + STEP), content, start, start + STEP)
    assert reader.events("peer-banned")
    assert rotten.name in msgspec.json.encode(await two.tracker.state()).decode()


async def test_upstream_sends_an_empty_body(two: Cluster, server: BlobServer) -> None:
    """Peerd: 1 MiB of zeros is cached and kept. Here: asked again, and the bytes are right."""
    url, _ = server.add(3 * MIB, 930)
    content = held(server, url)
    # not the door's question, but the first two windows
    await server.counter.rules(Rule(match="layers/", skip=1, times=2, then="end", after=0))
    for agent in two.agents:
        for start in (0, MIB, 2 * MIB):
            assert right(await read(agent, url, start, start + STEP), content, start, start + STEP)


async def test_peer_hangs(two: Cluster, server: BlobServer) -> None:
    """Peerd: 90 s (streaming), forever (pull). Here: upstream instead, within the 30 s that overlaybd waits."""
    url, digest = server.add(4 * MIB, 940)
    content = held(server, url)
    hanging, reader = two.agents
    assert (await fetch(f"{hanging.url}/blobs/{url}")).digest == digest
    hanging.process.signal(signal.SIGSTOP)
    try:
        got = await read(reader, url, MIB, MIB + STEP)
        assert right(got, content, MIB, MIB + STEP)
        print(f"{got.seconds:.1f} s")
    finally:
        hanging.process.signal(signal.SIGCONT)


async def test_upstream_down_and_a_peer_holds_everything(two: Cluster, server: BlobServer) -> None:
    """Peerd: 500, since it asks only upstream for the size. Here: the board knows it. The reader was accepted by
    upstream before, on this node; one that never was is refused, unless the node is trusted."""
    url, digest = server.add(4 * MIB, 950)
    content = held(server, url)
    holder, reader = two.agents
    trusting = await two.add("--blob-host=127.0.0.1:*", "--stream-trust-node", name="trusting")
    assert (await fetch(f"{holder.url}/blobs/{url}")).digest == digest
    assert (await fetch(f"{reader.url}/blobs/{url}", {"Range": f"bytes={4 * MIB}-"})).status == 416  # the door only
    await server.counter.process.kill()
    for agent in (reader, trusting):
        for start in (0, 2_000_001, 4 * MIB - STEP):
            got = await read(agent, url, start, start + STEP)
            assert right(got, content, start, start + STEP)
            assert got.headers["content-range"] == f"bytes {start}-{start + STEP - 1}/{4 * MIB}"
        head = await fetch(f"{agent.url}/blobs/{url}", method="HEAD")
        assert (head.status, head.headers["content-length"]) == (200, str(4 * MIB))
    assert (await fetch(f"{reader.url}/blobs/{url}?sig=never-seen", {"Range": "bytes=0-0"})).status == 503


async def test_cache_full(two: Cluster, server: BlobServer) -> None:
    """Peerd: 395-400 of 400 new reads fail once its 4 GiB are full. Here: all are right, the store keeps its budget,
    and what was read last is still there."""
    size, budget = 96 * MIB, 40 * MIB
    url, _ = server.add(size, 960)
    content = held(server, url)
    small = await two.add("--blob-host=127.0.0.1:*", f"--store-budget={budget}", name="small")
    chance = random.Random(1)
    for _ in range(3):
        starts = [chance.randrange(0, size - STEP) for _ in range(60)]
        got = await asyncio.gather(*(read(small, url, start, start + STEP) for start in starts[:16]))
        for start in starts[16:]:
            got.append(await read(small, url, start, start + STEP))
        wrong = [s for s, g in zip(starts, got, strict=True) if not right(g, content, s, s + STEP)]
        assert not wrong
        assert (await small.status())["store"]["bytes"] <= budget
    # The last of them may have been passed through, being the one for which there was no room; so may one that comes
    # while windows are still given up. Soon one is kept, and the next costs nothing.
    told: list[int] = []
    while len(told) < 2 or told[-1] != told[-2]:
        assert len(told) < 12, told
        await settled(server)
        told.append((await server.counter.counts()).bytes_of("layers/"))
        assert right(await read(small, url, starts[-1], starts[-1] + STEP), content, starts[-1], starts[-1] + STEP)
    sent = told[0]
    print(f"180 reads over {size // MIB} MiB in a store of {budget // MIB} MiB: {sent / MIB:.0f} MiB from upstream")


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 24 MiB."""
    with small_file_system(tmp_path / "disk", "24m") as disk:
        yield disk


async def test_disk_full(server: BlobServer, small_disk: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Peerd: the chunk stays unusable after space is freed. Here: right meanwhile (passed through), and kept again
    as soon as there is room."""
    # what is left to others is more than this disk has
    monkeypatch.setattr("swarm.node.Store", partial(Store, reserve_free=0))
    url, _ = server.add(6 * MIB, 970)
    content = held(server, url)
    async with sole_agent(small_disk) as running:

        async def ask(start: int) -> bool:
            status, _, body = await running.ask(f"/blobs/{url}", headers={"Range": f"bytes={start}-{start + STEP - 1}"})
            return (status, body) == (206, content[start : start + STEP])

        fill(small_disk / "ballast")
        for start in (0, 3 * MIB, 0):
            assert await ask(start)
        (small_disk / "ballast").unlink()
        for start in range(0, MIB, STEP):  # the whole window, so that nothing of it is on its way any more
            assert await ask(start)
        await settled(server)
        sent = (await server.counter.counts()).bytes_of("layers/")
        assert await ask(0)
        assert await ask(STEP)
        assert (await server.counter.counts()).bytes_of("layers/") == sent


async def test_read_amplification(two: Cluster, server: BlobServer) -> None:
    """Peerd: 1 MiB chunks, 32x for random reads, and a cold fill ceiling of 91 MiB/s (ours: bench). Here a read from
    a peer costs the pieces that it touches; from upstream it costs the window, once for the cluster."""
    size, reads = 64 * MIB, 100
    url, digest = server.add(size, 980)
    content = held(server, url)
    holder, reader = two.agents
    assert (await fetch(f"{holder.url}/blobs/{url}")).digest == digest
    chance = random.Random(2)
    pieces: set[int] = set()
    for _ in range(reads):
        start = chance.randrange(0, size - STEP)
        pieces |= {start // (256 * KIB), (start + STEP - 1) // (256 * KIB)}
        assert right(await read(reader, url, start, start + STEP), content, start, start + STEP)
    got = await count(reader, "shoal_swarm_received_bytes_total{source=peer}")
    print(f"{reads} random reads of 64 KiB from a peer: {got / (reads * STEP):.1f} bytes for each that was asked for")
    assert got <= len(pieces) * 256 * KIB + 4 * FIRST_AHEAD  # a hundred random reads may look like a run by chance
    assert await count(reader, "shoal_swarm_received_bytes_total{source=upstream}") == 0


async def test_unknown_url(sixteen: Cluster, server: BlobServer) -> None:
    """Peerd: all such URLs share one cache key, and any host is fetched for anybody. Here: a file of its own each,
    on this node only, and no host that is not on the list."""
    one, _ = server.add(MIB, 990, path="files/one")
    two_, _ = server.add(MIB, 991, path="files/two")
    agent, other = sixteen.agents[:2]
    for url in (one, two_, one, two_):
        content = held(server, url)
        assert right(await read(agent, url, 1000, 2000), content, 1000, 2000)
    blocks = [seen for seen in (await server.counter.counts()).of("files/") if seen.sent > 1]
    assert len(blocks) == 2
    assert right(await read(other, one, 1000, 2000), held(server, one), 1000, 2000)
    assert len([seen for seen in (await server.counter.counts()).of("files/") if seen.sent > 1]) == 3
    for target in ("http://example.com/x", "http://169.254.169.254/latest", "http://[::1]:1/x", "http://10.0.0.1/x"):
        assert (await fetch(f"{agent.url}/blobs/{target}", {"Range": "bytes=0-9"})).status == 403


async def test_sigterm(two: Cluster, server: BlobServer) -> None:
    """Peerd: never exits. Here: 0, with a read under way, within the 10 s that are promised."""
    url, _ = server.add(4 * MIB, 995)
    await server.counter.shape(connection=64 * KIB)
    agent = two.agents[0]
    reading = asyncio.create_task(read(agent, url, 3 * MIB, 3 * MIB + STEP))
    await server.counter.counts(part="layers/", sent=STEP)
    assert await agent.stop() == 0
    await reading
