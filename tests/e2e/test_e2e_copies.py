"""One copy leaves upstream, however many agents ask, whenever they ask (P1); and every blob arrives whole (P3)."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from pathlib import Path

import pytest
import pytest_asyncio

from swarm.blob.geometry import FIRST_WINDOW, PLAIN_WINDOW, piece_length
from tests.parts.cluster import Agent, Cluster, cluster
from tests.parts.counter import Counter, Rule
from tests.parts.fetch import Fetched, assert_right
from tests.parts.registry import Registry

pytestmark = [pytest.mark.needs_registry, pytest.mark.timeout(150)]

MIB = 1024 * 1024
COPIES = 1.02
"""Promise P1."""

WAITS = ("shoal_swarm_stalls_total", "shoal_swarm_rejections_total", "shoal_swarm_bad_pieces_total")
"""What counts the times that an agent had to wait for a timer, or to do something twice."""


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def sixteen(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Cluster]:
    """Sixteen agents for this whole file: starting them costs more than what they do here."""
    async with cluster(tmp_path_factory.mktemp("sixteen"), agents=16) as running:
        yield running


async def waits(agents: Sequence[Agent]) -> dict[str, dict[str, float]]:
    """Per agent what it counted of WAITS and of failed claims."""
    told = await asyncio.gather(*(agent.metrics() for agent in agents))
    return {
        agent.name: {
            name: value
            for name, value in found.items()
            if name in WAITS or name.startswith("shoal_swarm_source_failures_total")
        }
        for agent, found in zip(agents, told, strict=True)
    }


@pytest.mark.parametrize("count", [1, 2, 4, 8, 16])
async def test_agents_that_ask_at_the_same_moment(
    count: int, sixteen: Cluster, origin: Registry, upstream: Counter
) -> None:
    """N agents get the same 64 MiB; upstream sends it once; nobody waited for a timer."""
    blob = origin.plant(f"e2e/moment-{count}", 64 * MIB, 100 + count)
    agents = sixteen.agents[-count:]
    before = await waits(agents)
    assert_right(await sixteen.pull(blob, upstream.host, agents), blob)
    assert (await upstream.counts()).bytes_of(blob.repository) <= COPIES * blob.size
    assert await waits(agents) == before


async def test_an_upstream_that_ignores_ranges_is_read_by_one_agent(
    sixteen: Cluster, origin: Registry, upstream: Counter
) -> None:
    """Each of four read all of it: 4-5.5 copies. What they get before they hang up is in buffers on its way."""
    blob = origin.plant("e2e/no-ranges", 64 * MIB, 210)
    await upstream.rules(Rule(match="/blobs/", ignore_range=True))
    await upstream.shape(total=16 * MIB)
    assert_right(await sixteen.pull(blob, upstream.host, sixteen.agents[:4]), blob)
    assert (await upstream.counts()).bytes_of(blob.repository) <= 2 * blob.size


async def test_agents_that_ask_one_after_another(sixteen: Cluster, origin: Registry, upstream: Counter) -> None:
    """Eight start 100 ms apart while the first is still fetching; a ninth comes when all is done."""
    blob = origin.plant("e2e/staggered", 64 * MIB, 200)
    await upstream.shape(total=64 * MIB)  # the first byte and the last are a second apart
    agents = sixteen.agents[:9]
    before = await waits(agents)

    async def later(place: int) -> Fetched:
        await asyncio.sleep(0.1 * place)  # the stimulus, not a wait for something
        return await agents[place].blob(blob, upstream.host)

    assert_right(await asyncio.gather(*(later(place) for place in range(8))), blob)
    assert_right([await agents[8].blob(blob, upstream.host)], blob)
    assert (await upstream.counts()).bytes_of(blob.repository) <= COPIES * blob.size
    assert await waits(agents) == before


async def test_a_blob_that_is_held_is_not_asked_for_again(
    sixteen: Cluster, origin: Registry, upstream: Counter
) -> None:
    blob = origin.plant("e2e/again", 8 * MIB, 300)
    agent = sixteen.agents[0]
    for _ in range(3):
        assert_right([await agent.blob(blob, upstream.host)], blob)
    assert (await upstream.counts()).bytes_of(blob.repository) <= COPIES * blob.size


SIZES = {
    "empty": 0,
    "one byte": 1,
    "one piece": piece_length(1),
    "one piece and a byte": piece_length(1) + 1,
    "one window": FIRST_WINDOW,
    "one window and a byte": FIRST_WINDOW + 1,
    "the lead": 8 * FIRST_WINDOW,
    "the lead, a plain window and a byte": 8 * FIRST_WINDOW + PLAIN_WINDOW + 1,
}


@pytest.mark.parametrize("name", SIZES)
async def test_every_size(name: str, sixteen: Cluster, origin: Registry, upstream: Counter) -> None:
    """Sizes at the edges of pieces and windows, by three agents at once; ranges of them too."""
    size = SIZES[name]
    blob = origin.plant(f"e2e/size-{size}", size, 400)
    agents = sixteen.agents[:3]
    assert_right(await sixteen.pull(blob, upstream.host, agents), blob)
    assert (await upstream.counts()).bytes_of(blob.repository) <= COPIES * size
    if size > 1:
        last = await sixteen.agents[3].blob(blob, upstream.host, headers={"Range": "bytes=-1"})
        assert (last.status, last.size) == (206, 1)
        assert last.headers["content-range"] == f"bytes {size - 1}-{size - 1}/{size}"


async def test_two_gigabytes_through_three_agents(origin: Registry, upstream: Counter, tmp_path: Path) -> None:
    """Memory stays below 250 MiB in each agent, and its loop turns."""
    blob = await asyncio.to_thread(origin.plant, "e2e/large", 2048 * MIB, 500)
    try:
        async with cluster(tmp_path, agents=3) as three:
            pulls = await asyncio.gather(*(a.blob(blob, upstream.host, deadline=120) for a in three.agents))
            assert_right(pulls, blob)
            assert (await upstream.counts()).bytes_of(blob.repository) <= COPIES * blob.size
            peaks = {agent.name: agent.process.peak_rss() // MIB for agent in three.agents}
            print("peak RSS, MiB:", peaks, "seconds:", [round(pull.seconds, 1) for pull in pulls])
            assert max(peaks.values()) < 250
            for agent in three.agents:
                found = await agent.metrics()
                turns = found["shoal_loop_lag_seconds_count"]
                print(agent.name, {k: v for k, v in found.items() if k.startswith("shoal_loop_lag_seconds_bucket")})
                # ten processes share two cores here: what the clock says is printed, a loop that stood still fails
                assert found["shoal_loop_lag_seconds_bucket{le=0.5}"] >= turns - 1
    finally:
        origin.uproot(blob)
