"""What the tracker learns of the Kubernetes API, against the fake and against a real API server: one list for both."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import asynccontextmanager

import pytest
import pytest_asyncio

from tests.parts.kubeworld import NAMESPACE, SELECTOR, World, fake_world, real_world
from tests.tracker.members.test_discovery_kube import QUICK
from tracker.members import kube
from tracker.members.discovery import Reason
from tracker.members.events import Events
from tracker.members.pods import KubernetesDiscovery
from tracker.members.taints import Taints

pytestmark = [
    pytest.mark.asyncio(loop_scope="module"),
    pytest.mark.busy_loop("it starts a control plane's processes, and reads what they printed"),
]

PATIENCE = 60.0
"""Seconds for which one thing may take until it is known. The fake takes milliseconds."""


class Followed:
    """A discovery at work on a world, and a way to wait for what it learns."""

    def __init__(self, discovery: KubernetesDiscovery) -> None:
        self.discovery = discovery
        self.versions: list[int] = []
        """From which versions it has begun to watch pods."""
        self._happened = asyncio.Event()

    def happened(self) -> None:
        """Something may be different now."""
        self._happened.set()

    async def until(self, *ips: str) -> None:
        """Until exactly *ips* are members."""
        try:
            async with asyncio.timeout(PATIENCE):
                while not self.discovery.ready or self.discovery.ips() != set(ips):
                    self._happened.clear()
                    await self._happened.wait()
        except TimeoutError:
            raise AssertionError(f"members are {self.discovery.ips()}, not {set(ips)}") from None

    async def zoned(self, ip: str, zone: str) -> None:
        """Until *ip* is in *zone*."""
        async with asyncio.timeout(PATIENCE):
            while self.discovery.zone(ip) != zone:
                self._happened.clear()
                await self._happened.wait()

    async def watched(self, version: int) -> None:
        """Until a watch of pods has begun from *version*, or from a later one."""
        async with asyncio.timeout(PATIENCE):
            while not any(known >= version for known in self.versions):
                self._happened.clear()
                await self._happened.wait()


@asynccontextmanager
async def following(
    world: World, monkeypatch: pytest.MonkeyPatch, *, events: Events | None = None, taints: Taints | None = None
) -> AsyncIterator[Followed]:
    """A tracker's discovery with the rights of the chart's service account."""
    discovery = KubernetesDiscovery(
        NAMESPACE, SELECTOR, zones=True, kubeconfig=world.kubeconfig, events=events, taints=taints, backoff=QUICK
    )
    followed = Followed(discovery)
    watch = kube.Collection.watch

    def told(self: kube.Collection, version: str) -> AsyncGenerator[bytes, None]:
        if "namespace" in self._where:
            followed.versions.append(int(version))
            followed.happened()
        return watch(self, version)

    monkeypatch.setattr(kube.Collection, "watch", told)
    task = asyncio.create_task(discovery.run(followed.happened))
    try:
        yield followed
    finally:
        task.cancel()
        await asyncio.wait([task], timeout=5)


@pytest_asyncio.fixture(
    scope="module",
    loop_scope="module",
    params=["fake", pytest.param("real", marks=[pytest.mark.needs_cluster, pytest.mark.timeout(300)])],
)
async def world(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[World]:
    """One after the other. Each test leaves no pod behind."""
    made = fake_world(tmp_path_factory.mktemp("fake")) if request.param == "fake" else real_world()
    async with made as running:
        for name, zone in (("node-1", "north"), ("node-2", "south")):
            await running.put_node(name, zone)
        yield running


async def test_pods_come_run_end_and_go(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the chart's rights and no others."""
    await world.put_pod("a", "10.1.0.1")
    await world.put_pod("waits", "10.1.0.3", phase="Pending")
    async with following(world, monkeypatch) as followed:
        await followed.until("10.1.0.1")
        await world.put_pod("b", "10.1.0.2", node="node-2")
        await followed.until("10.1.0.1", "10.1.0.2")
        await world.put_pod("waits", "10.1.0.3")
        await followed.until("10.1.0.1", "10.1.0.2", "10.1.0.3")
        await world.put_pod("b", "10.1.0.2", node="node-2", phase="Succeeded")
        await followed.until("10.1.0.1", "10.1.0.3")
        await world.terminate("a")  # it still runs: it is heard of, and stays
        await world.put_pod("last", "10.1.0.4")
        await followed.until("10.1.0.1", "10.1.0.3", "10.1.0.4")
        await world.delete_pod("a")
        await followed.until("10.1.0.3", "10.1.0.4")
        for name in ("b", "waits", "last"):
            await world.delete_pod(name)
        await followed.until()
    assert followed.discovery.counts["pods_lists"] == 1


async def test_an_address_goes_from_one_pod_to_the_next(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    await world.put_pod("first", "10.1.1.1")
    async with following(world, monkeypatch) as followed:
        await followed.until("10.1.1.1")
        assert followed.discovery.name("10.1.1.1") == f"pod/{await world.uid('first')}"
        await world.delete_pod("first")
        await followed.until()
        await world.put_pod("second", "10.1.1.1", node="node-2")
        await followed.until("10.1.1.1")
        assert followed.discovery.name("10.1.1.1") == f"pod/{await world.uid('second')}"
        await world.delete_pod("second")


async def test_zones_follow_their_nodes(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    await world.put_pod("a", "10.1.2.1")
    async with following(world, monkeypatch) as followed:
        await followed.until("10.1.2.1")
        await followed.zoned("10.1.2.1", "north")
        for zone in ("west", "east", "north"):
            await world.put_node("node-1", zone)
            await followed.zoned("10.1.2.1", zone)
        await world.delete_pod("a")
    assert followed.discovery.counts["nodes_lists"] == 1


async def test_bookmarks_carry_a_watch_over_its_end(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """The server ends a watch; the next begins from what the last bookmark said, without another list."""
    monkeypatch.setattr(kube, "WATCH", (6.0, 6.0))
    await world.put_pod("a", "10.1.3.1")
    async with following(world, monkeypatch) as followed:
        await followed.until("10.1.3.1")
        await followed.watched(0)
        await followed.watched(int(await world.move_on()))
        assert followed.discovery.counts["pods_lists"] == 1
        await world.delete_pod("a")
        await followed.until()


async def test_members_stay_while_the_api_server_is_away(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    await world.put_pod("a", "10.1.4.1")
    async with following(world, monkeypatch) as followed:
        await followed.until("10.1.4.1")
        await world.outage()
        assert followed.discovery.ips() == {"10.1.4.1"}
        await world.put_pod("b", "10.1.4.2")
        await followed.until("10.1.4.1", "10.1.4.2")
        await world.delete_pod("a")
        await world.delete_pod("b")
        await followed.until()


async def test_a_version_that_was_compacted_means_a_new_list(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    await world.put_pod("a", "10.1.5.1")
    async with following(world, monkeypatch) as followed:
        await followed.until("10.1.5.1")
        await followed.watched(0)
        await world.forget()
        await world.put_pod("b", "10.1.5.2")
        await followed.until("10.1.5.1", "10.1.5.2")
        assert followed.discovery.counts["pods_lists"] > 1
        await world.delete_pod("a")
        await world.delete_pod("b")


async def test_a_token_that_was_replaced_is_read_again(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    await world.put_pod("a", "10.1.6.1")
    async with following(world, monkeypatch) as followed:
        await followed.until("10.1.6.1")
        await world.rotate()
        await world.put_pod("b", "10.1.6.2")
        await followed.until("10.1.6.1", "10.1.6.2")
        await world.delete_pod("a")
        await world.delete_pod("b")


async def test_events_are_in_what_kubectl_describes(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    await world.put_pod("a", "10.1.7.1")
    events = Events()
    async with following(world, monkeypatch, events=events) as followed:
        await followed.until("10.1.7.1")
        followed.discovery.note("10.1.7.1", Reason.QUARANTINED, "wrong bytes of sha256:00")
        async with asyncio.timeout(PATIENCE):
            while "ShoalQuarantined" not in (said := await world.described("a")):
                pass  # each question waits for its answer
        await world.delete_pod("a")
    assert "wrong bytes of sha256:00" in said


async def test_the_taint_goes_and_others_stay(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    await world.taint("node-2", "gpu", kube.TAINT, "team")
    await world.put_pod("a", "10.1.8.1", node="node-2")
    async with following(world, monkeypatch, taints=Taints(backoff=QUICK)) as followed:
        await followed.until("10.1.8.1")
        followed.discovery.note("10.1.8.1", Reason.JOINED, "joined")
        async with asyncio.timeout(PATIENCE):
            while kube.TAINT in (left := await world.taints("node-2")):  # noqa: ASYNC110 - the fake answers without a pause
                await asyncio.sleep(0)
        await world.delete_pod("a")
    assert {"gpu", "team"} <= left
