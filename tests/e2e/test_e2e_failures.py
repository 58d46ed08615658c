"""What breaks while others pull: agents and trackers that die, copies that rot, members that lie."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator
from pathlib import Path

import msgspec
import pytest

from tests.parts.cluster import Agent, Cluster, cluster
from tests.parts.counter import Counter, Counts, Rule
from tests.parts.fetch import Fetched, assert_right
from tests.parts.liar import liar
from tests.parts.registry import Blob, Registry

pytestmark = [pytest.mark.needs_registry, pytest.mark.timeout(150)]

MIB = 1024 * 1024


@pytest.fixture
async def three(tmp_path: Path) -> AsyncIterator[Cluster]:
    async with cluster(tmp_path, agents=3) as running:
        yield running


async def pull_until_right(agent: Agent, blob: Blob, ns: str) -> list[Fetched]:
    """What a client does that knows the digest: ask again when the body broke off. Every answer it got."""
    pulls: list[Fetched] = []
    while not pulls or not pulls[-1].whole:
        pulls.append(await agent.blob(blob, ns))
        assert len(pulls) < 10, pulls
    return pulls


def in_flight(counts: Counts, agent: Agent) -> set[str]:
    """The ranges that *agent* is bringing in right now."""
    ports = agent.process.local_ports()
    return {entry.range for entry in counts.seen if not entry.done and entry.client in ports}


async def test_a_claimant_that_is_killed_is_replaced(three: Cluster, origin: Registry, upstream: Counter) -> None:
    """kill -9 in mid-window: the others take its windows over and finish (P2)."""
    blob = origin.plant("e2e/killed", 24 * MIB, 800)
    await upstream.shape(connection=MIB // 2)
    victim, *others = three.agents
    pulls = [asyncio.create_task(agent.blob(blob, upstream.host)) for agent in three.agents]
    counts = await upstream.counts(part=blob.repository, sent=2 * MIB)
    while not (lost := in_flight(counts, victim)):
        # it holds no claim at this instant: look again when more has been sent
        counts = await upstream.counts(part=blob.repository, sent=counts.bytes_of(blob.repository) + 1)
    await victim.kill()
    await upstream.shape()
    broken, *right = await asyncio.gather(*pulls)
    assert not broken.whole
    for pull in right:
        assert_right([pull], blob)
    counts = await upstream.counts()
    again = {entry.range for entry in counts.of(blob.repository) if entry.done and entry.client}
    assert lost <= again
    # what the victim had drawn of its open windows is asked for twice, and nothing else
    assert counts.bytes_of(blob.repository) <= 1.02 * blob.size + len(lost) * 4 * MIB
    assert [await other.status() for other in others]


async def test_a_killed_agent_serves_what_it_had_finished_without_asking_anybody(
    three: Cluster, origin: Registry, upstream: Counter
) -> None:
    """kill -9, restart: no tracker, no upstream, no peer; the finished blob is there, the unfinished one is not
    mistaken for one (P7)."""
    done, half = origin.plant("e2e/done", 12 * MIB, 810), origin.plant("e2e/half", 24 * MIB, 811)
    agent = three.agents[0]
    assert_right([await agent.blob(done, upstream.host)], done)
    await agent.keeps(done)
    await upstream.shape(connection=MIB)
    pull = asyncio.create_task(agent.blob(half, upstream.host))
    await upstream.counts(part=half.repository, sent=3 * MIB)
    await agent.kill()
    assert not (await pull).whole
    await three.tracker.kill()
    await upstream.process.kill()
    for other in three.agents[1:]:
        await other.kill()
    await agent.start(joined=False)
    assert_right([await agent.blob(done, upstream.host)], done)
    missing = await agent.blob(half, upstream.host)
    assert (missing.status, missing.whole) == (404, True) or not missing.whole


async def test_a_restarted_agent_goes_on_where_it_was(three: Cluster, origin: Registry, upstream: Counter) -> None:
    """The verified pieces of an unfinished blob are not asked for again after kill -9."""
    blob = origin.plant("e2e/resume", 24 * MIB, 812)
    agent = three.agents[0]
    await upstream.shape(connection=2 * MIB)
    pull = asyncio.create_task(agent.blob(blob, upstream.host))
    before = (await upstream.counts(part=blob.repository, sent=12 * MIB)).bytes_of(blob.repository)
    await agent.kill()
    assert not (await pull).whole
    await upstream.reset()
    await agent.start()
    assert_right([await agent.blob(blob, upstream.host)], blob)
    again = (await upstream.counts()).bytes_of(blob.repository)
    print(f"before {before / MIB:.1f} MiB, after {again / MIB:.1f} MiB of {blob.size / MIB} MiB")
    assert again < blob.size - 4 * MIB


def rot(path: Path, blob: Blob) -> None:
    """Flip bytes all over a stored copy, so that no clock or size tells."""
    before = path.stat()
    with path.open("r+b", buffering=0) as file:
        for offset in range(1000, blob.size, 256 * 1024):
            os.pwrite(file.fileno(), b"rotten", offset)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


async def test_a_rotten_copy_does_not_spread(three: Cluster, origin: Registry, upstream: Counter) -> None:
    """The only copy in the cluster has rotted on its disk: the others notice, go upstream, and say who it was (P4)."""
    blob = origin.plant("e2e/rotten", 12 * MIB, 820)
    culprit, *others = three.agents
    assert_right([await culprit.blob(blob, upstream.host)], blob)
    path = await culprit.keeps(blob)
    assert await culprit.stop() == 0
    await asyncio.to_thread(rot, path, blob)
    await culprit.start()
    pulls = await asyncio.gather(*(pull_until_right(other, blob, upstream.host) for other in others))
    for answers in pulls:
        assert_right([answers[-1]], blob)
    # the first copy, and one more for the rotten one
    assert (await upstream.counts()).bytes_of(blob.repository) <= 2.02 * blob.size
    banned = [line for other in others for line in other.events("peer-banned")]
    assert any(f":{culprit.swarm_port}" in line or "127.0.0.1" in line for line in banned)
    state = msgspec.json.encode(await three.tracker.state()).decode()
    assert "corrupt" in state
    assert culprit.name in state


async def test_a_liar_is_found_out(three: Cluster, origin: Registry, upstream: Counter, tmp_path: Path) -> None:
    """A member publishes the hashes of wrong bytes and seeds those: nobody gets a complete wrong body, the right one
    comes by itself, and the liar is named (P3, P4)."""
    blob = origin.plant("e2e/lied", 20 * MIB, 830)
    async with liar(three.tracker.url, blob.digest, blob.size, tmp_path) as lies:
        answers = await asyncio.gather(*(pull_until_right(agent, blob, upstream.host) for agent in three.agents))
        for pulls in answers:
            assert_right([pulls[-1]], blob)
            assert not [pull for pull in pulls if pull.whole and pull.digest != blob.digest]
        await lies.says("told quarantined")
    state = msgspec.json.encode(await three.tracker.state()).decode()
    assert "published wrong hashes" in state
    assert "liar" in state
    assert "published wrong hashes" in three.tracker.process.output()
    assert (await upstream.counts()).bytes_of(blob.repository) <= 2 * len(three.agents) * blob.size


async def test_without_a_tracker_disk_and_upstream_go_on(three: Cluster, origin: Registry, upstream: Counter) -> None:
    """The tracker is killed: what is on disk is served from there, the rest comes from upstream or is 404 (P5).
    It comes back: the agents tell it everything again, and the cluster shares as before."""
    known, fresh, unknown = (origin.plant(f"e2e/tracker-{i}", 6 * MIB, 840 + i) for i in range(3))
    holder, other, third = three.agents
    assert_right([await holder.blob(known, upstream.host)], known)
    await three.tracker.kill()
    await upstream.reset()

    assert_right([await holder.blob(known, upstream.host)], known)
    assert (await upstream.counts()).seen == []
    assert_right([await other.blob(fresh, upstream.host)], fresh)
    nowhere = Blob("e2e/nowhere", "sha256:" + "1" * 64, 1)
    told = await third.blob(nowhere, upstream.host)
    assert (told.status, told.whole) == (404, True)
    assert b'"BLOB_UNKNOWN"' in told.body

    marks = [agent.process.lines for agent in three.agents]
    await three.tracker.start()
    for agent, mark in zip(three.agents, marks, strict=True):
        await agent.process.says("tracker-up", after=mark)
    await upstream.process.kill()
    for blob in (known, fresh):
        assert_right([await third.blob(blob, upstream.host)], blob)
    told = await third.blob(unknown, upstream.host)
    assert (told.status, told.whole) == (404, True)


async def test_an_upstream_that_is_rotten_for_good(three: Cluster, origin: Registry, upstream: Counter) -> None:
    """Whatever upstream sends is wrong: no client gets a complete body, and none waits for ever (P3)."""
    blob = origin.plant("e2e/always-rotten", 3 * MIB, 850)
    await upstream.rules(Rule(match="GET /v2/.*/blobs/", then="flip", after=0))
    pulls = await asyncio.gather(*(agent.blob(blob, upstream.host, deadline=60) for agent in three.agents[:2]))
    for pull in pulls:
        assert not pull.whole or pull.status in (404, 503), pull
