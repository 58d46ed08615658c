"""A node whose disk fails under a finished blob: its clients get right bytes from elsewhere, or a refusal at once."""

from __future__ import annotations

import asyncio
import os
import shutil
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.parts.cluster import Cluster, cluster
from tests.parts.counter import Counter, Rule
from tests.parts.fetch import assert_right
from tests.parts.registry import Blob, Registry

pytestmark = [pytest.mark.needs_registry, pytest.mark.timeout(120)]

MIB = 1024 * 1024


@pytest.fixture
async def two(tmp_path: Path) -> AsyncIterator[Cluster]:
    async with cluster(tmp_path, agents=2) as running:
        yield running


def rot(path: Path, *places: int) -> None:
    """Other bytes at *places*, and nothing that size, times or inode tell."""
    before = path.stat()
    with path.open("r+b", buffering=0) as file:
        for place in places:
            os.pwrite(file.fileno(), b"rotten", place)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


async def test_a_copy_that_rotted_while_the_agent_was_down_is_gone_past_in_mid_body(
    two: Cluster, origin: Registry, upstream: Counter
) -> None:
    """One request, one whole right body: up to the rotten piece from disk, from there on from the other agent."""
    blob = origin.plant("disks/rot", 12 * MIB, 1800)
    first, second = two.agents
    for agent in (first, second):
        assert_right([await agent.blob(blob, upstream.host)], blob)
        path = await agent.keeps(blob)
    assert await second.stop() == 0
    await asyncio.to_thread(rot, path, 9 * MIB)
    await second.start()
    await upstream.reset()
    assert_right([await second.blob(blob, upstream.host)], blob)
    assert second.events("blob-wrong")
    assert (await upstream.counts()).bytes_of(blob.repository) == 0
    assert_right([await second.blob(blob, upstream.host)], blob)


async def test_a_copy_that_rotted_under_way_is_refused_before_the_first_byte_if_nobody_else_has_it(
    two: Cluster, origin: Registry, upstream: Counter
) -> None:
    blob = origin.plant("disks/alone", 6 * MIB, 1801)
    agent, _ = two.agents
    assert_right([await agent.blob(blob, upstream.host)], blob)
    path = await agent.keeps(blob)
    await asyncio.to_thread(rot, path, 1)
    os.sync()
    with path.open("rb") as file:
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    await upstream.rules(Rule(match="/blobs/", status=404))
    told = await agent.blob(blob, upstream.host)
    assert told.whole
    assert told.status in (404, 503)  # the latter where the client may be in the middle of the blob
    await upstream.rules()
    assert_right([await agent.blob(blob, upstream.host)], blob)


async def test_a_store_that_is_emptied_under_a_running_agent_fills_again(
    two: Cluster, origin: Registry, upstream: Counter
) -> None:
    held, fresh = origin.plant("disks/held", 3 * MIB, 1802), origin.plant("disks/fresh", 3 * MIB, 1803)
    agent, other = two.agents
    assert_right([await agent.blob(held, upstream.host)], held)
    await agent.keeps(held)
    for path in list(agent.store.iterdir()):
        await asyncio.to_thread(shutil.rmtree, path, True)
    for blob in (fresh, held):
        assert_right([await agent.blob(blob, upstream.host)], blob)
        await agent.keeps(blob)
    assert_right([await other.blob(held, upstream.host)], held)
    nowhere = Blob("disks/nowhere", "sha256:" + "1" * 64, 1)
    assert (await agent.blob(nowhere, upstream.host)).status == 404


async def test_a_node_that_pulls_more_than_its_store_takes_one_copy_of_each(
    tmp_path: Path, origin: Registry, upstream: Counter
) -> None:
    """What nobody reads any more makes room at once. Each layer was pinned for half a minute: the rest passed through,
    one copy for each node."""
    blobs = [origin.plant("disks/many", 8 * MIB, 1820 + number) for number in range(5)]
    async with cluster(tmp_path, agents=2, flags=["--store-budget=24MiB"]) as running:
        for blob in blobs:
            told = await asyncio.gather(*(agent.blob(blob, upstream.host) for agent in running.agents))
            assert_right(told, blob)
    counts = await upstream.counts()
    assert counts.bytes_of("disks/many") <= 1.02 * sum(blob.size for blob in blobs)
    assert not any(agent.events("blob-not-kept") for agent in running.agents)
