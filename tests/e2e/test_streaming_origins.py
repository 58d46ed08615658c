"""Whose word a reader of ranges is given: of its own place, or of a sealed blob (swarm/fetch/proof.py)."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from mirror.front.urls import parse
from swarm.fetch.proof import origin_of
from tests.parts.blobserver import BlobServer, blob_server
from tests.parts.cluster import Agent, Cluster, cluster
from tests.parts.fetch import fetch
from tests.parts.liar import liar

pytestmark = [pytest.mark.needs_nginx, pytest.mark.timeout(120)]

MIB = 1024 * 1024
SIZE = 6 * MIB
STEP = 60_000
START, STOP = MIB // 16, MIB // 16 + STEP
ANYWHERE = "--blob-host=127.0.0.1:*"


@pytest.fixture
async def server(tmp_path: Path) -> AsyncIterator[BlobServer]:
    async with blob_server(tmp_path) as running:
        yield running


@pytest.fixture
async def own(tmp_path: Path) -> AsyncIterator[BlobServer]:
    """A server of somebody who may put there what he likes."""
    async with blob_server(tmp_path, name="own") as running:
        yield running


@pytest.fixture
async def two(tmp_path: Path) -> AsyncIterator[Cluster]:
    async with cluster(tmp_path, agents=2, flags=[ANYWHERE]) as running:
        yield running


def content_of(server: BlobServer, digest: str) -> bytes:
    """The file that *digest* names."""
    return (server.files.root / "layers" / digest).read_bytes()


def lie(own: BlobServer, digest: str) -> str:
    """Another file under *digest*; its URL."""
    place = own.files.root / "mine" / digest
    place.parent.mkdir(exist_ok=True)
    place.write_bytes(b"EVIL" * (SIZE // 4))
    return f"{own.url}/mine/{digest}"


async def read(agent: Agent, url: str, start: int = START, stop: int = STOP) -> bytes:
    """The bytes of a range, read through *agent*."""
    answer = await fetch(f"{agent.url}/blobs/{url}", {"Range": f"bytes={start}-{stop - 1}"})
    assert (answer.status, answer.whole) == (206, True)
    return answer.body


async def test_a_place_of_ones_own_gives_its_bytes_to_nobody_else(
    two: Cluster, server: BlobServer, own: BlobServer
) -> None:
    """A local process asks its own server for a digest first. Readers of the real place have the real bytes, on its own
    node and on others; and a whole pull seals the blob for everybody."""
    first, other = two.agents
    url, digest = server.add(SIZE, 91)
    content = content_of(server, digest)
    wrong = lie(own, digest)
    assert await read(first, wrong) == (b"EVIL" * SIZE)[START:STOP]
    for agent in (other, first):
        assert await read(agent, url) == content[START:STOP]
    start = 5 * MIB + 17
    assert await read(first, wrong, start, start + 8) != content[start : start + 8]
    assert await read(other, url, start, start + 8) == content[start : start + 8]


async def test_readers_of_one_place_share_what_upstream_sends_once(two: Cluster, server: BlobServer) -> None:
    """With other signatures in their URLs, and after a restart of one of them."""
    first, other = two.agents
    url, digest = server.add(SIZE, 92)
    content = content_of(server, digest)
    assert await read(first, f"{url}?sig=a") == content[START:STOP]
    assert await read(other, f"{url}?sig=b") == content[START:STOP]
    await other.stop()
    await other.start()
    assert await read(other, f"{url}?sig=c") == content[START:STOP]
    assert (await server.counter.counts()).bytes_of("layers/") <= MIB + 100


async def test_what_was_pulled_whole_is_given_whoever_brought_it_in(
    two: Cluster, server: BlobServer, own: BlobServer
) -> None:
    first, other = two.agents
    url, digest = server.add(SIZE, 93)
    content = content_of(server, digest)
    whole = await fetch(f"{first.url}/blobs/{url}")
    assert whole.digest == digest
    await first.process.says("blob-sealed")
    before = (await server.counter.counts()).bytes_of("layers/")
    elsewhere = f"{own.url}/mine/{digest}"
    lie(own, digest)
    assert await read(other, elsewhere) == content[START:STOP]
    assert (await server.counter.counts()).bytes_of("layers/") == before


async def test_strictly_no_members_word_is_given_before_two_have_seen_the_sha256(
    tmp_path: Path, server: BlobServer
) -> None:
    """A member tells wrong hashes and names the reader's own origin: upstream's bytes are given, and no member's."""
    url, digest = server.add(SIZE, 94)
    content = content_of(server, digest)
    origin = origin_of(parse(f"/blobs/{url}").word)
    async with (
        cluster(tmp_path, agents=1, flags=[ANYWHERE, "--strict-ranges"]) as one,
        liar(one.tracker.url, digest, SIZE, tmp_path, origin=origin),
    ):
        for start in range(0, SIZE, MIB):
            assert await read(one.agents[0], url, start, start + STEP) == content[start : start + STEP]
