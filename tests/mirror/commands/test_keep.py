"""`shoal preheat --keep N`: real agents keep an image whatever else is pulled, restart, are lost and replaced."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from swarm.blob.geometry import MIB
from tests.mirror.commands.test_preheat import TOKEN, name_of, preheat
from tests.parts.cluster import Agent, Cluster, cluster
from tests.parts.counter import Counter
from tests.parts.registry import Image, Registry

WHOLE = r"keeps .*state=whole"


async def kept(whole: Cluster) -> list[dict[str, Any]]:
    """What the tracker knows of kept images."""
    found: list[dict[str, Any]] = (await whole.tracker.state())["kept"]
    return found


def has(agent: Agent, image: Image) -> bool:
    """Whether all layers are in the agent's store."""
    return all((agent.store / "blobs/sha256" / one.digest.removeprefix("sha256:")).exists() for one in image.layers)


async def pull(agent: Agent, images: list[Image], upstream: Counter) -> None:
    """Through the agent, onto its disk."""
    for image in images:
        for layer in image.layers:
            assert (await agent.blob(layer, upstream.host)).whole
            await agent.keeps(layer)


async def again(agent: Agent) -> None:
    """kill -9, and start: what was pulled before may be evicted now, for nothing of it is under way."""
    await agent.kill()
    await agent.start()


@pytest.mark.needs_registry
async def test_an_image_stays_whatever_happens(origin: Registry, upstream: Counter, tmp_path: Path) -> None:
    """Two of three keep it: one is killed, starts again and pulls more than its store takes; the other is lost, and the
    third takes over from peers alone; at last an order lets it go."""
    image = await origin.push_image("keep/app", "v1", [2 * MIB])
    others = [await origin.push_image("keep/other", f"v{n}", [3 * MIB]) for n in range(4)]
    name = name_of(image, upstream)
    (tmp_path / "token").write_text(f"{TOKEN}\n")
    discovery = ["--discovery=static", "--member=127.0.0.0/8", f"--preheat-token={tmp_path / 'token'}"]
    discovery.append("--keep-patience=1s")
    async with cluster(tmp_path, agents=3, flags=["--store-budget=10MiB"], discovery=discovery) as whole:
        first, second, third = whole.agents
        status, out, errors = await preheat(whole, name, "--keep=2", "--count=1", "--wait", "--json")
        assert status == 0, errors
        (said,) = json.loads(out)["kept"]
        assert (said["whole"], said["keepers"]) == (2, {"agent-0": "whole", "agent-1": "whole"})

        await pull(first, others[:2], upstream)  # the image is the oldest in its store now
        await again(first)
        await first.process.says(WHOLE)
        await pull(first, others[2:], upstream)
        assert (await first.status())["store"]["evictions"] >= 2
        assert has(first, image)
        assert not has(first, others[0])
        assert not has(third, image)

        await upstream.reset()
        await second.kill()
        await third.process.says(WHOLE)
        assert has(third, image)
        assert (await upstream.counts()).bytes_of("/blobs/") == 0  # the other keeper had it
        assert [(one["whole"], one["keepers"]) for one in await kept(whole)] == [
            (2, {"agent-0": "whole", "agent-2": "whole"})
        ]

        status, out, errors = await preheat(whole, name, "--keep=0", "--wait")
        assert (status, f"{name}: kept by nobody any more" in out) == (0, True), errors
        assert await kept(whole) == []
        await again(first)
        await pull(first, others[:3], upstream)
        assert not has(first, image)


@pytest.mark.needs_registry
async def test_an_order_outlives_the_trackers_that_knew_it(origin: Registry, upstream: Counter, tmp_path: Path) -> None:
    """Of two trackers either is killed, and then a keeper: the other tracker has it made good, from peers alone. One
    that starts anew learns the order from the keepers."""
    image = await origin.push_image("keep/trackers", "v1", [2 * MIB])
    (tmp_path / "token").write_text(f"{TOKEN}\n")
    discovery = ["--discovery=static", "--member=127.0.0.0/8", f"--preheat-token={tmp_path / 'token'}"]
    discovery.append("--keep-patience=1s")
    async with cluster(tmp_path, agents=4, trackers=2, discovery=discovery) as whole:
        _, second, third, fourth = whole.agents
        status, _, errors = await preheat(whole, name_of(image, upstream), "--keep=2", "--count=1", "--wait")
        assert status == 0, errors
        await upstream.reset()

        await whole.trackers[0].kill()
        await second.kill()
        await third.process.says(WHOLE)
        before = [(agent, agent.process.lines) for agent in (whole.agents[0], third, fourth)]
        await whole.trackers[0].start()
        for agent, lines in before:
            await agent.process.says("tracker-up", after=lines)
        await whole.trackers[1].kill()
        await third.kill()
        await fourth.process.says(WHOLE)
        assert has(fourth, image)
        assert (await upstream.counts()).bytes_of("/blobs/") == 0
        assert [one["keepers"] for one in await kept(whole)] == [{"agent-0": "whole", "agent-3": "whole"}]


@pytest.mark.needs_registry
async def test_what_does_not_fit_is_told(origin: Registry, upstream: Counter, tmp_path: Path) -> None:
    """Exit status 1, with the reason of each agent; more copies than there are agents are told as such."""
    image = await origin.push_image("keep/large", "v1", [6 * MIB])
    (tmp_path / "token").write_text(f"{TOKEN}\n")
    discovery = ["--discovery=static", "--member=127.0.0.0/8", f"--preheat-token={tmp_path / 'token'}"]
    async with cluster(tmp_path, agents=1, flags=["--store-budget=10MiB"], discovery=discovery) as whole:
        status, out, errors = await preheat(whole, name_of(image, upstream), "--keep=1", "--wait", "--json")
        assert status == 1
        assert json.loads(out)["kept"][0]["whole"] == 0
        assert "0 of 1 copies are kept" in errors
        assert "agent-0 does not keep it: it takes 6.0 MiB" in errors
        small = await origin.push_image("keep/small", "v1", [MIB])
        status, _, errors = await preheat(whole, name_of(small, upstream), "--keep=2", "--wait")
        assert (status, "1 of 2 copies are kept" in errors) == (1, True)
