"""A cluster as Kubernetes describes it: members and zones from the API, events on the pods, claims by zone."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from swarm.blob.geometry import FIRST_WINDOW
from tests.parts.cluster import Cluster, cluster
from tests.parts.counter import Counter
from tests.parts.fetch import assert_right
from tests.parts.kubeapi import KubeApi, kube_api, node, pod
from tests.parts.registry import Registry

pytestmark = [pytest.mark.needs_registry, pytest.mark.timeout(150)]

MIB = 1024 * 1024
COPIES = 1.02
"""Promise P1, for each copy that is meant."""

PODS = {"north-0": "127.0.1.1", "north-1": "127.0.1.2", "south-0": "127.0.2.1", "south-1": "127.0.2.2"}
"""Agents by name: two zones of two nodes."""


@asynccontextmanager
async def four(tmp_path: Path, *flags: str) -> AsyncIterator[tuple[KubeApi, Cluster]]:
    """An agent per pod, and a tracker with *flags* that learns of them from the Kubernetes API."""
    async with kube_api() as api:
        for name, ip in PODS.items():
            await api.put("nodes", node(f"node-{name}", name.partition("-")[0]))
            await api.put("pods", pod(name, ip, node=f"node-{name}", uid=f"uid-{name}"))
        config = api.kubeconfig(tmp_path / "kubeconfig")
        asked = ("--discovery=kubernetes", "--namespace=shoal", "--selector=app=shoal-agent", f"--kubeconfig={config}")
        async with cluster(tmp_path, agents=0, discovery=(*asked, *flags)) as shoal:
            await api.until(lambda: api.watching("pods") == api.watching("nodes") == 1)
            await asyncio.gather(*(shoal.add(name=name, ip=ip) for name, ip in PODS.items()))
            yield api, shoal


async def test_members_zones_and_events(origin: Registry, upstream: Counter, tmp_path: Path) -> None:
    """Each pod is told that it joined; one that served a peer that it is active; one that died that it is lost. A pod
    that is deleted is out at once, whatever its process does."""
    blob = origin.plant("kubernetes/events", 24 * MIB, 950)
    async with four(tmp_path) as (api, shoal):

        def told(reason: str) -> set[str]:
            return {event["involvedObject"]["name"] for event in api.events if event["reason"] == reason}

        await api.until(lambda: told("ShoalJoined") == set(PODS))
        state = await shoal.tracker.state()
        assert {zone["name"]: zone["agents"] for zone in state["zones"]} == {"north": 2, "south": 2}

        assert_right([await shoal.agents[0].blob(blob, upstream.host)], blob)
        assert told("ShoalActive") == set()
        assert_right([await shoal.agents[2].blob(blob, upstream.host)], blob)
        await api.until(lambda: told("ShoalActive") == {"north-0"})
        assert (await upstream.counts()).bytes_of(blob.repository) <= COPIES * blob.size

        await shoal.agents[1].kill()
        await api.until(lambda: told("ShoalLost") == {"north-1"})
        (lost,) = [event for event in api.events if event["reason"] == "ShoalLost"]
        assert (lost["type"], lost["involvedObject"]["uid"]) == ("Warning", "uid-north-1")

        await api.delete("pods", "south-1")
        await shoal.agents[3].process.says("tracker-down")
        state = await shoal.tracker.state("/api/v1/agents")
        assert [agent["name"] for agent in state["items"]] == ["north-0", "south-0"]
        assert len(api.events) == 6, "each reason once per pod"


async def test_with_a_copy_per_zone_each_zone_asks_upstream_once(
    origin: Registry, upstream: Counter, tmp_path: Path
) -> None:
    """All at once, and one after another; and where upstream is gone, a zone gets it from the other."""
    once, later, gone = (origin.plant(f"kubernetes/zone-{i}", 24 * MIB, 960 + i) for i in range(3))
    async with four(tmp_path, "--copy-per-zone") as (_, shoal):
        assert_right(await shoal.pull(once, upstream.host), once)
        for agent in shoal.agents:
            assert_right([await agent.blob(later, upstream.host)], later)
        counts = await upstream.counts()
        for blob in (once, later):
            assert 2 * blob.size <= counts.bytes_of(blob.repository) <= 2 * COPIES * blob.size
        north, *_, south = shoal.agents
        assert_right([await north.blob(gone, upstream.host)], gone)
        await upstream.process.kill()
        assert_right([await south.blob(gone, upstream.host)], gone)


async def test_agents_of_the_zone_near_to_upstream_bring_blobs_in(
    origin: Registry, upstream: Counter, tmp_path: Path
) -> None:
    """All pull at once: the far zone asks for the first window at most, before anybody near is there."""
    blob = origin.plant("kubernetes/near", 48 * MIB, 970)
    await upstream.shape(total=24 * MIB)
    async with four(tmp_path, "--near-zone=south") as (_, shoal):
        assert_right(await shoal.pull(blob, upstream.host), blob)
        far = 0.0
        for agent in shoal.agents[:2]:
            far += (await agent.metrics())["shoal_swarm_received_bytes_total{source=upstream}"]
        assert far <= FIRST_WINDOW
        assert (await upstream.counts()).bytes_of(blob.repository) <= COPIES * blob.size
