"""A pod's readiness and an agent's membership: neither waits for the other (DESIGN.md, P15).

The fake API stands for the control plane, and `kubelet` for what no test had: the pod's condition Ready follows
what the agent's own /readyz says.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import aiohttp

from tests.parts.cluster import Agent, Cluster, cluster
from tests.parts.kubeapi import KubeApi, kube_api, pod
from tests.parts.procs import free_port

IP = "127.0.1.1"
NAME = "agent-a"
JOINED, LEFT = r"cluster-joined", r"cluster-left"


async def kubelet(api: KubeApi, agent: Agent) -> bool:
    """One probe, as the chart configures it: asks /readyz and writes the pod's condition. Returns what it wrote."""
    url = f"http://127.0.0.1:{agent.metrics_port}/readyz"
    ready = False
    try:
        async with aiohttp.ClientSession() as session, session.get(url) as answer:
            ready = answer.status == 200
    except aiohttp.ClientError:
        pass
    await api.put("pods", pod(NAME, IP, ready=ready))
    return ready


@asynccontextmanager
async def watched(tmp_path: Path) -> AsyncIterator[tuple[KubeApi, Cluster]]:
    """A tracker that learns its members from the API, in which one agent's pod runs and is not ready."""
    async with kube_api() as api:
        await api.put("pods", pod(NAME, IP, ready=False))
        config = api.kubeconfig(tmp_path / "kubeconfig")
        flags = ("--discovery=kubernetes", "--namespace=shoal", "--selector=app=shoal-agent", f"--kubeconfig={config}")
        async with cluster(tmp_path, agents=0, discovery=flags) as shoal:
            await api.until(lambda: api.watching("pods") == 1)
            yield api, shoal


async def test_a_pod_becomes_ready_and_a_member_by_its_own_probe(tmp_path: Path) -> None:
    """The first agent of a cluster: nobody is ready, so neither side may wait for the other."""
    async with watched(tmp_path) as (api, shoal):
        agent = shoal.prepare(name=NAME, ip=IP)
        await agent.start(joined=False)
        assert await kubelet(api, agent), "an agent that listens is ready"
        await agent.process.says(JOINED)
        assert (await agent.status())["member"] is True
        assert (await agent.metrics())["shoal_swarm_member"] == 1


async def test_an_agent_is_ready_without_any_tracker_and_says_that_it_is_alone(tmp_path: Path) -> None:
    nobody = f"http://127.0.0.1:{free_port()}"
    async with kube_api() as api, cluster(tmp_path, agents=0, trackers=0) as shoal:
        agent = shoal.prepare(f"--tracker={nobody}", name=NAME)
        await agent.start(joined=False)
        assert await kubelet(api, agent)
        await agent.process.says(r"tracker-silent.*" + nobody)
        assert (await agent.status())["member"] is False
        assert (await agent.metrics())["shoal_swarm_member"] == 0


async def test_a_pod_that_was_unready_or_unknown_for_a_moment_is_a_member_again_at_once(tmp_path: Path) -> None:
    """A slow probe changes nothing. A pod that the API takes away and brings back finds its living agent taken back,
    though its session is the one from before."""
    async with watched(tmp_path) as (api, shoal):
        agent = await shoal.add(name=NAME, ip=IP)
        pid = agent.process.pid

        await api.put("pods", pod(NAME, IP, ready=False))
        await api.put("pods", pod("other", "127.0.1.2"))  # heard after it on the same watch
        state = await shoal.tracker.state("/api/v1/agents")
        assert [one["name"] for one in state["items"]] == [NAME]
        assert not agent.events(LEFT)

        for away in (None, pod(NAME, IP, phase="Pending"), pod(NAME, IP, terminating=True)):
            seen = agent.process.lines
            if away is None:
                await api.delete("pods", NAME)
            else:
                await api.put("pods", away)
            await agent.process.says(LEFT, after=seen)
            await agent.process.says(r"tracker-refuses.*is no member", after=seen)
            await shoal.tracker.process.says(r"agent\.refused.*is no member")
            assert await kubelet(api, agent), "membership is no condition of readiness"
            await agent.process.says(JOINED, after=seen)
        assert agent.process.pid == pid
