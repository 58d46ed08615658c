"""A tag that moves upstream, seen from every node all the time, whatever becomes of the tracker and of upstream."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

import aiohttp
import pytest

from tests.parts import data
from tests.parts.cluster import Agent, cluster
from tests.parts.counter import Counter, Rule
from tests.parts.registry import Registry

pytestmark = [pytest.mark.needs_registry, pytest.mark.timeout(150)]

TTL = 1.0
REPOSITORY = "e2e/moving"


@dataclass
class Node:
    """What one node was told: (when it asked, digest), in order."""

    agent: Agent
    seen: list[tuple[float, str]] = field(default_factory=list)
    news: asyncio.Condition = field(default_factory=asyncio.Condition)

    async def watch(self, host: str) -> None:
        """Ask as fast as answers come."""
        url = f"{self.agent.url}/v2/{REPOSITORY}/manifests/latest?ns={host}"
        async with aiohttp.ClientSession() as session:
            while True:
                asked = time.monotonic()
                async with session.head(url) as answer:
                    assert answer.status == 200
                    digest = answer.headers["Docker-Content-Digest"]
                async with self.news:
                    self.seen.append((asked, digest))
                    self.news.notify_all()

    async def has(self, digest: str, *, since: float) -> None:
        """Until a question asked after *since* was answered with *digest*."""
        async with asyncio.timeout(30), self.news:
            await self.news.wait_for(lambda: any(asked > since and seen == digest for asked, seen in self.seen[-1:]))

    def in_order(self) -> list[str]:
        """The digests it saw, each time it saw another one than before."""
        digests = [digest for _, digest in self.seen]
        return [digest for before, digest in zip(["", *digests], digests, strict=False) if digest != before]


@asynccontextmanager
async def watched(agents: list[Agent], host: str) -> AsyncIterator[list[Node]]:
    """Every agent is asked all the time."""
    nodes = [Node(agent) for agent in agents]
    watching = [asyncio.create_task(node.watch(host)) for node in nodes]
    try:
        yield nodes
        assert not [task for task in watching if task.done()]
    finally:
        for task in watching:
            task.cancel()
        await asyncio.gather(*watching, return_exceptions=True)


async def test_a_tag_that_moves(origin: Registry, upstream: Counter, tmp_path: Path) -> None:
    """It moves while a tracker is there, while it is gone, and when it is back. Whoever asks later than the TTL after
    a move is told the new digest; no node is told an old one after a newer; upstream is asked by two nodes per TTL
    and cluster. Then upstream throttles: the newest digest goes on to answer, and says that it is the last known."""
    async with cluster(tmp_path, agents=3, flags=[f"--tag-ttl={TTL:g}s"]) as whole:
        moves = []

        async def move() -> tuple[float, str]:
            image = await origin.push_image(REPOSITORY, "latest", [100])
            moves.append((time.monotonic(), image.manifest.digest))
            return moves[-1]

        await move()
        begun = time.monotonic()
        async with watched(whole.agents, upstream.host) as nodes:

            async def everywhere(moved: tuple[float, str]) -> None:
                await asyncio.gather(*(node.has(moved[1], since=moved[0] + TTL) for node in nodes))

            await everywhere(moves[0])
            await everywhere(await move())
            together, lasted = len((await upstream.counts()).of("manifests/latest", "HEAD")), time.monotonic() - begun
            await whole.tracker.kill()
            await everywhere(await move())
            lines = [agent.process.lines for agent in whole.agents]
            await whole.tracker.start()
            rejoined = zip(whole.agents, lines, strict=True)
            await asyncio.gather(*(agent.process.says("tracker-up", after=count) for agent, count in rejoined))
            await everywhere(await move())
        order = [digest for _, digest in moves]
        for node in nodes:
            assert node.in_order() == order
            for index, (moved, _) in enumerate(moves):
                assert not [digest for asked, digest in node.seen if asked > moved + TTL and digest in order[:index]]
        assert together <= 2 * (lasted / TTL + 1), "by two nodes per TTL, however many nodes and questions"

        await upstream.rules(Rule(match="manifests/latest", status=429, headers={"Retry-After": "30"}))
        newest = moves[-1][1]
        for agent in whole.agents:
            while "warning" not in (told := await agent.manifest(REPOSITORY, "latest", upstream.host)).headers:
                assert (told.status, told.headers["docker-content-digest"]) == (200, newest)  # its TTL is not over
            assert (told.status, told.headers["docker-content-digest"]) == (200, newest)
            assert told.headers["warning"].startswith("110 ")
            assert data.digest_of(told.body) == newest
            await agent.process.says("last known digest")


async def test_one_agent_is_told_to_wait_and_the_cluster_waits(
    origin: Registry, upstream: Counter, tmp_path: Path
) -> None:
    """429 with Retry-After to two: the others ask nothing either, and say so in their metrics; a blob that a node
    holds goes on to be served, and one that nobody has is 404, for containerd to get it itself. The word of one
    node stops nobody."""
    kept, wanted = origin.plant("e2e/paused", 3000, 901), origin.plant("e2e/paused", 3000, 902)
    async with cluster(tmp_path, agents=3) as whole:
        first, second, *others = whole.agents
        assert (await first.blob(kept, upstream.host)).digest == kept.digest
        await upstream.reset()
        await upstream.rules(Rule(match=wanted.digest, status=429, headers={"Retry-After": "300"}))
        assert (await first.blob(wanted, upstream.host)).status == 404
        assert (await second.blob(wanted, upstream.host)).status == 404
        assert len((await upstream.counts()).seen) == 2, "it asked by itself"
        key = f"shoal_upstream_pauses_total{{by=cluster,host={upstream.host}}}"
        async with asyncio.timeout(10):
            for agent in others:
                while not (await agent.metrics()).get(key):  # noqa: ASYNC110 - another process: no event of ours
                    await asyncio.sleep(0.02)
        for agent in others:
            assert (await agent.blob(wanted, upstream.host)).status == 404
            assert (await agent.blob(kept, upstream.host)).digest == kept.digest
            assert (await agent.metrics())[f"shoal_upstream_held_back_total{{host={upstream.host},why=pause}}"] >= 1
        assert len((await upstream.counts()).seen) == 2
        # an agent that comes later is told as well
        late = await whole.add()
        assert (await late.blob(wanted, upstream.host)).status == 404
        assert len((await upstream.counts()).seen) == 2
