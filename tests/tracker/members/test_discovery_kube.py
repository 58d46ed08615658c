"""Membership from the Kubernetes API, through the real client: the conformance list of issue 5."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import ssl
import threading
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address
from pathlib import Path

import aiohttp
import pytest
import trustme
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from kubernetes.aio.config import incluster_config

from swarm.protocol import wire
from tests.parts.kubeapi import TOKEN, KubeApi, kube_api, node, pod
from tests.parts.procs import Process, free_port, python
from tests.parts.talk import JSON
from tracker.errors import DiscoveryError
from tracker.members import kube
from tracker.members.backoff import Backoff
from tracker.members.discovery import Reason
from tracker.members.events import Events
from tracker.members.pods import KubernetesDiscovery
from tracker.members.taints import Taints

QUICK = Backoff(first=0.01, longest=0.05)


class Running:
    """A discovery at work, and a way to wait for what it learns."""

    def __init__(self, discovery: KubernetesDiscovery) -> None:
        self.discovery = discovery
        self.changes = 0
        self._changed = asyncio.Event()

    def on_change(self) -> None:
        self.changes += 1
        self._changed.set()

    async def until(self, condition: Callable[[], bool]) -> None:
        async with asyncio.timeout(20):
            while not condition():
                self._changed.clear()
                await self._changed.wait()

    async def members(self, *ips: str) -> None:
        """Wait until exactly *ips* are members."""
        await self.until(lambda: self.discovery.ready and self.discovery.ips() == set(ips))


@pytest.fixture
async def api() -> AsyncIterator[KubeApi]:
    async with kube_api() as server:
        yield server


@asynccontextmanager
async def following(
    api: KubeApi,
    tmp_path: Path,
    *,
    zones: bool = False,
    events: Events | None = None,
    taints: Taints | None = None,
    token: str = TOKEN,
) -> AsyncIterator[Running]:
    """A discovery that follows *api*; stopped at the end, and then nothing of it may be left."""
    discovery = KubernetesDiscovery(
        "shoal",
        "app=shoal-agent",
        zones=zones,
        kubeconfig=api.kubeconfig(tmp_path / "kubeconfig", token=token),
        events=events,
        taints=taints,
        backoff=QUICK,
    )
    running = Running(discovery)
    task = asyncio.create_task(discovery.run(running.on_change))
    try:
        yield running
    finally:
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            async with asyncio.timeout(5):
                await task


@pytest.mark.busy_loop("it makes thousands of pods between two awaits")
async def test_the_first_list_comes_in_pages_of_one_snapshot(api: KubeApi, tmp_path: Path) -> None:
    for i in range(25):
        await api.put("pods", pod(f"agent-{i:02}", f"10.0.0.{i}"))
    api.page_limit = 10
    async with following(api, tmp_path) as running:
        await running.members(*(f"10.0.0.{i}" for i in range(25)))
    lists = [asked for asked in api.asked if asked.verb == "list"]
    assert ["continue" in asked.query for asked in lists] == [False, True, True]
    assert {asked.query["labelSelector"] for asked in lists} == {"app=shoal-agent"}
    assert {asked.query["limit"] for asked in lists} == {"250"}
    assert running.changes == 1


async def test_nobody_is_ready_before_the_whole_first_list(api: KubeApi, tmp_path: Path) -> None:
    await api.put("pods", pod("a", "10.0.0.1"))
    await api.put("pods", pod("b", "10.0.0.2"))
    api.page_limit = 1
    api.gate.clear()
    async with following(api, tmp_path) as running:
        await api.until(lambda: api.waiting == 1)
        assert not running.discovery.ready
        assert not running.discovery.is_member("10.0.0.1")
        api.gate.set()
        await running.members("10.0.0.1", "10.0.0.2")


async def test_an_empty_namespace_is_an_answer(api: KubeApi, tmp_path: Path) -> None:
    async with following(api, tmp_path) as running:
        await running.members()


async def test_pods_come_change_and_go_by_watch_events(api: KubeApi, tmp_path: Path) -> None:
    async with following(api, tmp_path) as running:
        await running.members()
        await api.put("pods", pod("a", "10.0.0.1"))
        await running.members("10.0.0.1")
        await api.put("pods", pod("a", "10.0.0.9"))
        await running.members("10.0.0.9")
        await api.delete("pods", "a")
        await running.members()
    assert api.counts("pods", "list") == 1
    assert api.counts("pods", "watch") == 1


@pytest.mark.parametrize(
    "state",
    [
        pod("a", "10.0.0.1", phase="Failed"),
        pod("a", "10.0.0.1", phase="Succeeded"),
        pod("a", "10.0.0.1", phase="Pending"),
        pod("a"),
    ],
    ids=["failed", "succeeded", "pending", "no address"],
)
async def test_a_pod_that_cannot_serve_is_out_with_the_event_that_says_so(
    api: KubeApi, tmp_path: Path, state: dict[str, object]
) -> None:
    await api.put("pods", pod("a", "10.0.0.1"))
    async with following(api, tmp_path) as running:
        await running.members("10.0.0.1")
        await api.put("pods", state)
        await running.members()


async def test_both_addresses_of_a_dual_stack_pod_count(api: KubeApi, tmp_path: Path) -> None:
    await api.put("pods", pod("a", "10.0.0.1", "fd00:0:0::1"))
    async with following(api, tmp_path) as running:
        await running.members("10.0.0.1", "fd00::1")
        assert running.discovery.is_member("::ffff:10.0.0.1")
        assert running.discovery.is_member("FD00:0::1")
        assert not running.discovery.is_member("no address")


async def test_pods_of_other_labels_are_nobody(api: KubeApi, tmp_path: Path) -> None:
    await api.put("pods", pod("a", "10.0.0.1"))
    await api.put("pods", pod("b", "10.0.0.2", labels={"app": "other"}))
    async with following(api, tmp_path) as running:
        await running.members("10.0.0.1")
        await api.put("pods", pod("c", "10.0.0.3", labels={"app": "other"}))
        await api.put("pods", pod("d", "10.0.0.4"))
        await running.members("10.0.0.1", "10.0.0.4")


async def test_a_watch_goes_on_from_the_last_bookmark(api: KubeApi, tmp_path: Path) -> None:
    await api.put("pods", pod("a", "10.0.0.1"))
    async with following(api, tmp_path) as running:
        await api.until(lambda: api.watching("pods") == 1)
        version = await api.bookmark("pods")
        api.end()
        await api.until(lambda: api.counts("pods", "watch") == 2 and api.watching("pods") == 1)
        await running.members("10.0.0.1")
    watches = [asked.query for asked in api.asked if asked.verb == "watch"]
    assert watches[1]["resourceVersion"] == version
    assert watches[0]["allowWatchBookmarks"].lower() == "true"
    assert 240 <= int(watches[0]["timeoutSeconds"]) <= 480
    assert api.counts("pods", "list") == 1


@pytest.mark.parametrize("as_event", [False, True], ids=["HTTP status", "ERROR event"])
async def test_410_gone_means_list_again(api: KubeApi, tmp_path: Path, as_event: bool) -> None:
    await api.put("pods", pod("a", "10.0.0.1"))
    await api.put("pods", pod("b", "10.0.0.2"))
    api.gone_as_event = as_event
    async with following(api, tmp_path) as running:
        await api.until(lambda: api.watching("pods") == 1)
        api.cut()
        await api.until(lambda: api.watching("pods") == 0)
        api.gate.clear()
        await api.delete("pods", "a")  # nobody sees the event
        await api.put("pods", pod("c", "10.0.0.3"))
        api.compact("pods")
        api.gate.set()
        await running.members("10.0.0.2", "10.0.0.3")
    assert api.counts("pods", "list") == 2


async def test_a_continue_token_that_expired_means_the_list_again_in_longer_pages(api: KubeApi, tmp_path: Path) -> None:
    for i in range(5):
        await api.put("pods", pod(f"agent-{i}", f"10.0.0.{i}"))
    api.page_limit = 2
    api.expire_pages = True
    async with following(api, tmp_path) as running:
        await running.members(*(f"10.0.0.{i}" for i in range(5)))
    lists = [asked.query for asked in api.asked if asked.verb == "list"]
    assert [(query.get("limit"), "continue" in query) for query in lists] == [
        ("250", False), ("250", True), ("1000", False), ("1000", True), ("1000", True),
    ]  # fmt: skip


async def test_a_cut_connection_loses_no_event_and_no_member(api: KubeApi, tmp_path: Path) -> None:
    await api.put("pods", pod("a", "10.0.0.1"))
    async with following(api, tmp_path) as running:
        await api.until(lambda: api.watching("pods") == 1)
        api.gate.clear()
        api.cut()
        await api.put("pods", pod("b", "10.0.0.2"))
        await api.until(lambda: api.waiting == 1)
        assert running.discovery.is_member("10.0.0.1")
        api.gate.set()
        await running.members("10.0.0.1", "10.0.0.2")
    assert api.counts("pods", "list") == 1


async def test_members_stay_while_the_api_is_down_and_are_asked_for_again(
    api: KubeApi, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "shoal.tracker")
    await api.put("pods", pod("a", "10.0.0.1"))
    async with following(api, tmp_path) as running:
        await api.until(lambda: api.watching("pods") == 1)
        api.statuses["pods"] = [(503, {}), (500, {}), (503, {}), (429, {"Retry-After": "1"})]
        api.cut()
        await api.until(lambda: not api.statuses["pods"])
        assert running.discovery.ready
        assert running.discovery.is_member("10.0.0.1")
        await api.put("pods", pod("b", "10.0.0.2"))
        await running.members("10.0.0.1", "10.0.0.2")
    assert "discovery_back" in [record.message for record in caplog.records]
    assert TOKEN not in caplog.text


async def test_a_slow_api_delays_and_a_silent_one_is_given_up(
    api: KubeApi, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kube, "LIST", 0.05)
    await api.put("pods", pod("a", "10.0.0.1"))
    api.gate.clear()
    async with following(api, tmp_path) as running:
        await api.until(lambda: api.counts("pods", "list") >= 3)
        assert not running.discovery.ready
        monkeypatch.setattr(kube, "LIST", 20.0)
        api.gate.set()
        await running.members("10.0.0.1")


async def test_a_watch_that_sends_nonsense_is_begun_anew(api: KubeApi, tmp_path: Path) -> None:
    await api.put("pods", pod("a", "10.0.0.1"))
    async with following(api, tmp_path) as running:
        await api.until(lambda: api.watching("pods") == 1)
        await api.raw("pods", b'{"type": "MODIFIED", "object"\n')
        await api.until(lambda: api.counts("pods", "list") == 2 and api.watching("pods") == 1)
        await api.put("pods", pod("b", "10.0.0.2"))
        await running.members("10.0.0.1", "10.0.0.2")


async def test_without_permission_nobody_is_a_member_until_it_is_given(
    api: KubeApi, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    await api.put("pods", pod("a", "10.0.0.1"))
    api.denied.add("pods")
    async with following(api, tmp_path) as running:
        await api.until(lambda: api.counts("pods", "list") >= 4)
        assert not running.discovery.ready
        api.denied.clear()
        await running.members("10.0.0.1")
    failing = [record for record in caplog.records if record.message == "discovery_failing"]
    assert len(failing) == 1
    assert vars(failing[0])["fields"]["status"] == 403


async def test_zones_come_from_the_labels_of_the_nodes(api: KubeApi, tmp_path: Path) -> None:
    await api.put("nodes", node("node-1", "eu-1a"))
    await api.put("nodes", node("node-2"))
    await api.put("pods", pod("a", "10.0.0.1", node="node-1"))
    await api.put("pods", pod("b", "10.0.0.2", node="node-2"))
    async with following(api, tmp_path, zones=True) as running:
        await running.until(lambda: running.discovery.zone("10.0.0.1") == "eu-1a")
        assert running.discovery.zone("10.0.0.2") == ""
        assert running.discovery.zone("10.9.9.9") == ""
        await api.put("nodes", node("node-2", "eu-1b"))
        await running.until(lambda: running.discovery.zone("10.0.0.2") == "eu-1b")
        await api.delete("nodes", "node-1")
        await running.until(lambda: running.discovery.zone("10.0.0.1") == "")
    assert all("PartialObjectMetadata" in asked.accept for asked in api.asked if asked.resource == "nodes")
    assert api.counts("nodes", "list") == 1
    assert api.counts("nodes", "watch") == 1, "three changes by one watch"


async def test_without_permission_for_nodes_there_are_members_but_no_zones(
    api: KubeApi, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    await api.put("nodes", node("node-1", "eu-1a"))
    await api.put("pods", pod("a", "10.0.0.1", node="node-1"))
    api.denied.add("nodes")
    async with following(api, tmp_path, zones=True) as running:
        await running.members("10.0.0.1")
        await api.until(lambda: api.counts("nodes", "list") >= 3)
        assert running.discovery.zone("10.0.0.1") == ""
    assert len([record for record in caplog.records if record.message == "discovery_failing"]) == 1


async def test_nodes_are_not_asked_for_when_zones_are_off(api: KubeApi, tmp_path: Path) -> None:
    async with following(api, tmp_path) as running:
        await running.members()
        await api.until(lambda: api.watching("pods") == 1)
    assert api.counts("nodes", "list") == 0


async def test_nothing_is_left_after_the_stop(api: KubeApi, tmp_path: Path) -> None:
    await api.put("pods", pod("a", "10.0.0.1"))
    threads, tasks = set(threading.enumerate()), asyncio.all_tasks()
    for _ in range(3):
        async with following(api, tmp_path, zones=True) as running:
            await running.members("10.0.0.1")
            await api.until(lambda: api.watching("pods") == 1)
        await api.until(lambda: api.watching("pods") == 0 and api.watching("nodes") == 0)
    # The loop's own pool is bounded and not ours: aiohttp looks for ~/.netrc in it.
    left = {thread for thread in threading.enumerate() if not thread.name.startswith("asyncio_")}
    assert left <= threads
    ours = {task for task in asyncio.all_tasks() - tasks if "tracker" in repr(task.get_coro())}
    assert ours == set()


async def test_a_refused_token_is_read_again(api: KubeApi, tmp_path: Path) -> None:
    await api.put("pods", pod("a", "10.0.0.1"))
    async with following(api, tmp_path, token="an-old-token") as running:
        await api.until(lambda: api.counts("pods", "list") >= 2)
        api.kubeconfig(tmp_path / "kubeconfig")
        await running.members("10.0.0.1")


async def test_the_service_account_of_a_pod_is_used_over_tls(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    authority = trustme.CA()
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("127.0.0.1").configure_cert(tls)
    authority.cert_pem.write_to_path(str(tmp_path / "ca.crt"))
    (tmp_path / "token").write_text(TOKEN)
    monkeypatch.setattr(incluster_config, "SERVICE_TOKEN_FILENAME", str(tmp_path / "token"))
    monkeypatch.setattr(incluster_config, "SERVICE_CERT_FILENAME", str(tmp_path / "ca.crt"))
    async with kube_api(tls) as api:
        host, port = api.url.removeprefix("https://").split(":")
        monkeypatch.setenv("KUBERNETES_SERVICE_HOST", host)
        monkeypatch.setenv("KUBERNETES_SERVICE_PORT", port)
        await api.put("pods", pod("a", "10.0.0.1"))
        discovery = KubernetesDiscovery("shoal", "app=shoal-agent", zones=False, backoff=QUICK)
        running = Running(discovery)
        task = asyncio.create_task(discovery.run(running.on_change))
        await running.members("10.0.0.1")
        task.cancel()
        await asyncio.wait([task])


async def test_a_configuration_that_is_missing_is_one_clear_line(tmp_path: Path) -> None:
    discovery = KubernetesDiscovery("shoal", "app=shoal-agent", kubeconfig=tmp_path / "none")
    with pytest.raises(DiscoveryError, match=r"^the Kubernetes configuration cannot be used"):
        await discovery.run(lambda: None)


async def test_events_are_posted_on_the_pod(api: KubeApi, tmp_path: Path) -> None:
    await api.put("pods", pod("a", "10.0.0.1", uid="u-1"))
    events = Events()
    async with following(api, tmp_path, events=events) as running:
        await running.members("10.0.0.1")
        events.note(running.discovery.member("10.0.0.1"), Reason.QUARANTINED, "wrong bytes of sha256:00", now=0.0)
        events.note(running.discovery.member("10.0.0.1"), Reason.QUARANTINED, "again", now=1.0)
        events.note(running.discovery.member("10.9.9.9"), Reason.JOINED, "no member", now=1.0)
        events.note(running.discovery.member("10.0.0.1"), Reason.JOINED, "joined", now=1.0)
        await api.until(lambda: len(api.events) == 2)
    first, second = api.events
    assert first["involvedObject"] == {
        "apiVersion": "v1", "kind": "Pod", "namespace": "shoal", "name": "a", "uid": "u-1",
    }  # fmt: skip
    assert (first["reason"], first["type"], first["message"]) == (
        "ShoalQuarantined", "Warning", "wrong bytes of sha256:00",
    )  # fmt: skip
    assert first["metadata"]["namespace"] == "shoal"
    assert first["metadata"]["name"].startswith("a.")
    assert (second["reason"], second["type"]) == ("ShoalJoined", "Normal")


async def test_without_permission_events_are_off_and_said_once(
    api: KubeApi, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "shoal.tracker")
    await api.put("pods", pod("a", "10.0.0.1"))
    api.denied.add("events")
    events = Events()
    async with following(api, tmp_path, events=events) as running:
        await running.members("10.0.0.1")
        member = running.discovery.member("10.0.0.1")
        for reason in Reason:
            events.note(member, reason, "text", now=0.0)
        await api.until(lambda: api.counts("events", "create") == 1)
        await api.put("pods", pod("b", "10.0.0.2"))
        await running.members("10.0.0.1", "10.0.0.2")
    assert api.counts("events", "create") == 1
    assert not api.events
    assert [record.message for record in caplog.records].count("events_denied") == 1


async def test_a_tracker_admits_exactly_the_running_pods(api: KubeApi, tmp_path: Path) -> None:
    """The whole process: 403 before the pod runs, 200 while it does, 403 from the event on that says otherwise."""
    port = free_port()
    config = api.kubeconfig(tmp_path / "kubeconfig")
    process = Process(
        [*python("mirror"), "tracker", f"--listen=127.0.0.1:{port}", "--discovery=kubernetes",
         "--namespace=shoal", "--selector=app=shoal-agent", f"--kubeconfig={config}"],
        name="tracker", log=tmp_path / "tracker.log",
    )  # fmt: skip
    url = f"http://127.0.0.1:{port}"
    poll = wire.AgentPoll(node="a", port=6881, session="s", full=True)

    async def said(client: aiohttp.ClientSession) -> int:
        async with client.post(f"{url}/v1/agent", data=wire.encode(poll), headers=JSON) as answer:
            return answer.status

    api.gate.clear()
    process.start()
    try:
        async with asyncio.timeout(60), aiohttp.ClientSession() as client:
            await process.says(r"tracker\.started")
            await api.until(lambda: api.waiting == 2)  # pods and nodes
            async with client.get(f"{url}/readyz") as answer:
                assert answer.status == 503
            api.gate.set()
            await api.until(lambda: api.watching("pods") == 1)
            assert await said(client) == 403
            await api.put("pods", pod("a", "127.0.0.1"))
            while await said(client) != 200:
                pass  # the event is on its way; each question waits for its answer
            async with client.get(f"{url}/readyz") as answer:
                assert answer.status == 200
            await api.until(lambda: len(api.events) == 1)
            assert api.events[0]["reason"] == "ShoalJoined"
            await api.put("pods", pod("a", "127.0.0.1", phase="Failed"))
            while await said(client) != 403:
                pass
            async with client.get(f"{url}/api/v1/agents") as answer:
                assert '"127.0.0.1:6881"' not in await answer.text()
    finally:
        os.kill(process.pid, signal.SIGTERM)
        assert await process.ended() == 0
    assert TOKEN not in process.output()


async def test_a_watch_that_keeps_ending_is_doubted_and_told(
    api: KubeApi, tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As a real API server ends a watch in a form that it cannot give: 200, and the end. It is seen."""
    monkeypatch.setattr(kube, "METADATA_WATCH", kube.METADATA_LIST)
    caplog.set_level(logging.INFO, "shoal.tracker")
    await api.put("nodes", node("node-1", "eu-1a"))
    await api.put("pods", pod("a", "10.0.0.1", node="node-1"))
    async with following(api, tmp_path, zones=True) as running:
        await running.until(lambda: running.discovery.zone("10.0.0.1") == "eu-1a")
        await api.put("nodes", node("node-1", "eu-1b"))
        await running.until(lambda: running.discovery.zone("10.0.0.1") == "eu-1b")
        await api.until(lambda: api.counts("nodes", "list") >= 2)
    assert api.counts("nodes", "watch") >= 3
    told = [vars(record)["fields"] for record in caplog.records if record.message == "discovery_failing"]
    assert [(fields["resource"], fields["reason"]) for fields in told] == [("nodes", "watches end at once")]


async def test_a_pod_that_stops_running_leaves_the_selection_of_the_watch(api: KubeApi, tmp_path: Path) -> None:
    await api.put("pods", pod("a", "10.0.0.1"))
    await api.put("pods", pod("b", "10.0.0.2", phase="Pending"))
    async with following(api, tmp_path) as running:
        await running.members("10.0.0.1")
        await api.put("pods", pod("b", "10.0.0.2"))
        await running.members("10.0.0.1", "10.0.0.2")
        await api.put("pods", pod("a", "10.0.0.1", phase="Succeeded"))
        await running.members("10.0.0.2")
    assert {asked.query["fieldSelector"] for asked in api.asked if asked.resource == "pods"} == {"status.phase=Running"}


async def test_an_authority_without_key_usage_is_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As EKS and microk8s had them. Python 3.13 checks strictly by default; here every default context does."""
    certificate, tls = old_authority(tmp_path)
    usual = ssl.create_default_context

    def strict(*args: object, **more: object) -> ssl.SSLContext:
        context = usual(*args, **more)  # type: ignore[arg-type]  # passed on as they came
        context.verify_flags |= ssl.VERIFY_X509_STRICT
        return context

    monkeypatch.setattr(ssl, "create_default_context", strict)
    async with kube_api(tls) as api:
        with pytest.raises(aiohttp.ClientConnectorCertificateError):
            async with aiohttp.ClientSession() as session:
                await session.get(api.url, ssl=ssl.create_default_context(cafile=str(certificate)))
        await api.put("pods", pod("a", "10.0.0.1"))
        config = api.kubeconfig(tmp_path / "kubeconfig", ca=certificate)
        discovery = KubernetesDiscovery("shoal", "app=shoal-agent", zones=False, kubeconfig=config, backoff=QUICK)
        running = Running(discovery)
        task = asyncio.create_task(discovery.run(running.on_change))
        await running.members("10.0.0.1")
        task.cancel()
        await asyncio.wait([task])


async def test_an_event_that_failed_is_tried_again_and_two_trackers_post_one(api: KubeApi, tmp_path: Path) -> None:
    await api.put("pods", pod("a", "10.0.0.1", uid="u-1"))
    api.statuses["events"] = [(500, {}), (503, {})]
    one, other = Events(pauses=(0, 0, 0)), Events(pauses=(0, 0, 0))
    async with following(api, tmp_path, events=one) as running:
        await running.members("10.0.0.1")
        member = running.discovery.member("10.0.0.1")
        one.note(member, Reason.LOST, "fell silent", now=0.0)
        await api.until(lambda: len(api.events) == 1)
        async with following(api, tmp_path, events=other):
            other.note(member, Reason.LOST, "fell silent", now=0.0)
            await api.until(lambda: api.counts("events", "create") == 4)
    assert len(api.events) == 1


async def test_an_event_that_could_not_be_posted_is_not_held_back_later(api: KubeApi, tmp_path: Path) -> None:
    await api.put("pods", pod("a", "10.0.0.1", uid="u-1"))
    api.statuses["events"] = [(500, {}), (500, {})]
    events = Events(pauses=(0, 0))
    async with following(api, tmp_path, events=events) as running:
        await running.members("10.0.0.1")
        member = running.discovery.member("10.0.0.1")
        events.note(member, Reason.LOST, "fell silent", now=0.0)
        await api.until(lambda: not api.statuses["events"])
        while not events.dropped:  # noqa: ASYNC110 - a few turns of the loop: the answer is on its way
            await asyncio.sleep(0)
        events.note(member, Reason.LOST, "fell silent", now=1.0)
        await api.until(lambda: len(api.events) == 1)


async def test_the_taint_of_a_node_goes_once_its_agent_joined(api: KubeApi, tmp_path: Path) -> None:
    tainted = node("node-1")
    tainted["spec"] = {"taints": [{"key": kube.TAINT, "effect": "NoSchedule"}, {"key": "gpu", "effect": "NoSchedule"}]}
    await api.put("nodes", tainted)
    await api.put("pods", pod("a", "10.0.0.1", node="node-1"))
    await api.put("pods", pod("b", "10.0.0.2", node="gone"))
    taints = Taints(backoff=QUICK)
    async with following(api, tmp_path, taints=taints) as running:
        await running.members("10.0.0.1", "10.0.0.2")
        api.statuses["nodes"] = [(500, {})]
        running.discovery.note("10.0.0.2", Reason.JOINED, "its node was deleted")
        running.discovery.note("10.0.0.1", Reason.ACTIVE, "says nothing about membership")
        running.discovery.note("10.0.0.9", Reason.JOINED, "no member")
        await api.until(lambda: api.counts("nodes", "get") == 2)
        assert api.patches == []
        running.discovery.note("10.0.0.1", Reason.JOINED, "joined")
        await api.until(lambda: len(api.patches) == 1)
    (name, _) = api.patches[0]
    assert name == "node-1"
    assert [taint["key"] for taint in api.object("nodes", "node-1")["spec"]["taints"]] == ["gpu"]


def old_authority(directory: Path) -> tuple[Path, ssl.SSLContext]:
    """An authority without the extension key usage, and a server's context with a certificate of it."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "kubernetes")])
    now = datetime.now(UTC)

    def certificate(public: ec.EllipticCurvePublicKey, subject: x509.Name, *, ca: bool) -> x509.CertificateBuilder:
        return (
            x509.CertificateBuilder().subject_name(subject).issuer_name(name).public_key(public)
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - timedelta(hours=1)).not_valid_after(now + timedelta(hours=1))
            .add_extension(x509.BasicConstraints(ca=ca, path_length=None), critical=True)
        )  # fmt: skip

    paths = directory / "old-ca.crt", directory / "old.pem"
    paths[0].write_bytes(certificate(key.public_key(), name, ca=True).sign(key, SHA256()).public_bytes(Encoding.PEM))
    own = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "apiserver")])
    names = x509.SubjectAlternativeName([x509.IPAddress(ip_address("127.0.0.1"))])
    shown = certificate(own.public_key(), subject, ca=False).add_extension(names, critical=False).sign(key, SHA256())
    secret = own.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    paths[1].write_bytes(shown.public_bytes(Encoding.PEM) + secret)
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    tls.load_cert_chain(paths[1])
    return paths[0], tls
