"""A pod's readiness and an agent's membership: neither waits for the other (DESIGN.md, P15).

The fake API stands for the control plane, and `kubelet` for what no test had: the pod's condition Ready follows
what the agent's own /readyz says.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import aiohttp

from tests.parts.cluster import Agent, Cluster, Tracker, cluster
from tests.parts.keys import Keys
from tests.parts.kubeapi import KubeApi, kube_api, pod
from tests.parts.procs import Process, free_port, python
from tests.tracker.http.test_signing import token_of
from tracker.http.signing import AUDIENCE

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

        for away in (None, pod(NAME, IP, phase="Pending")):
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


async def test_agents_get_certificates_for_their_pods_tokens_and_become_members(tmp_path: Path) -> None:
    """As in a cluster: the tracker has the authority's key, each agent the authority's certificate and a token."""
    await Keys(tmp_path).make()
    authority = tmp_path / "ca/ca.crt"
    port, page = free_port(), free_port()
    async with kube_api() as api:
        config = api.kubeconfig(tmp_path / "kubeconfig")
        argv = python(
            "mirror", "tracker", f"--listen=127.0.0.1:{port}", f"--page-listen=127.0.0.1:{page}",
            "--discovery=kubernetes", "--namespace=shoal", "--selector=app=shoal-agent", f"--kubeconfig={config}",
            f"--tls-ca={authority}", f"--tls-ca-key={tmp_path}/ca/ca.key",
        )  # fmt: skip
        tracker = Process(argv, name="tracker", log=tmp_path / "tracker.log")
        shoal = Cluster(tmp_path, [Tracker(port, tracker)])
        try:
            await shoal.tracker.start()
            await api.until(lambda: api.watching("pods") == 1)
            agents: list[Agent] = []
            for name, uid in (("a", "uid-of-a"), ("b", "uid-of-b"), ("thief", "uid-of-a")):
                token = tmp_path / f"token-{name}"
                token.write_text(token_of(uid, rest=f"signed-for-{name}"))
                if name != "thief":  # its token states the pod of another, and the API server does not know it
                    api.tokens[token.read_text()] = (uid, AUDIENCE)
                    await api.put("pods", pod(name, f"127.0.1.{len(agents) + 1}", uid=uid, ready=False))
                agents.append(shoal.prepare(f"--tls-ca={authority}", f"--tls-token={token}", name=name))
            *members, thief = agents
            await asyncio.gather(*(agent.start() for agent in members), thief.start(joined=False))
            for agent in members:
                await agent.process.says("identity-enrolled")
            await thief.process.says(r"identity-not-enrolled.*403")
            assert (await thief.status())["member"] is False
            for agent in agents:
                assert "signed-for" not in agent.process.output(), "a token is in no log"
            assert "signed-for" not in tracker.output()
            async with aiohttp.ClientSession() as http, http.get(f"http://127.0.0.1:{page}/api/v1/agents") as answer:
                found = {one["name"]: one["key"] for one in (await answer.json())["items"]}
            assert {name: key.rpartition(":")[0] for name, key in found.items()} == {"a": "127.0.1.1", "b": "127.0.1.2"}
        finally:
            await shoal.stop_agents()
            await tracker.stop()
