"""`python -m tests.parts.kubecluster.scale [--without-restart] [COUNT...]`: a tracker and thousands of nodes.

kwok plays the nodes and the pods of the chart's DaemonSet; etcd, API server, controller manager and scheduler are real.
The tracker is a real one with the rights of the chart's service account. Everything shares this machine, the agents
(`crowd`) too: times are what they are at most.
"""

from __future__ import annotations

import asyncio
import json
import re
import resource
import ssl
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import aiohttp
import psutil

from bench.report import facts
from tests.parts import kubeworld
from tests.parts.kubecluster import binaries, network
from tests.parts.kubecluster.cluster import KubeCluster, kube_cluster
from tests.parts.kubecluster.control import SERVER
from tests.parts.kubecluster.crowd import Crowd, ended
from tests.parts.kubecluster.images import ROOT
from tests.parts.kubecluster.shoal import IMAGE_VALUES
from tests.parts.procs import PartFailed, Process, python, run

COUNTS = (1000, 5000)
SELECTOR = "app.kubernetes.io/name=shoal,app.kubernetes.io/component=agent"
PORT = 6969
REST = 30.0
"""Seconds for which a tracker at rest is looked at."""

WITHIN = 900.0
"""Seconds for any one step: thousands of pods on a small machine take minutes to be made."""

SHARED = "agents, API server and kwok share the tracker's machine"
MIB = 1024 * 1024
Row = dict[str, Any]


async def measure(count: int, *, restart: bool = True) -> Row:
    """One size: everything is made for it, and gone after it. *restart*: with the rolling restart, which takes a small
    machine longest by far."""
    row: Row = {"nodes": count}
    async with kube_cluster(nodes=0, patient=True) as cluster, asyncio.timeout(4 * WITHIN):
        world = kubeworld.RealWorld(cluster)
        await world.begin()
        await _nodes(cluster, count)
        async with _kwok(cluster) as kwok, _tracker(cluster, world.kubeconfig) as tracker:
            crowd = Crowd(cluster.control.admin, SELECTOR, (network.address(network.CONTROL), PORT))
            agents = asyncio.create_task(crowd.run())
            try:
                await _rollout(cluster, kwok, crowd, count, row)
                await _rest(tracker, row)
                if restart:
                    await _restart(cluster, tracker, crowd, count, row)
            finally:
                await ended(agents)
            row["memory_peak_mib"] = round(tracker.peak_rss() / MIB)
            await _begin_anew(tracker, row)
    return row


async def _nodes(cluster: KubeCluster, count: int) -> None:
    """Make the nodes, Ready as they are: by the API, since kubectl asks twice for each."""
    tls = ssl.create_default_context(cafile=str(cluster.authority.certificate))
    tls.verify_flags &= ~ssl.VERIFY_X509_STRICT
    tls.load_cert_chain(cluster.authority.directory / "admin.crt", cluster.authority.directory / "admin.key")
    resources = {"cpu": "8", "memory": "32Gi", "pods": "110"}
    ready = {"type": "Ready", "status": "True", "reason": "KubeletReady", "lastTransitionTime": _now()}
    ready["lastHeartbeatTime"] = ready["lastTransitionTime"]
    address = {"type": "InternalIP", "address": network.address(network.CONTROL)}

    async def make(session: aiohttp.ClientSession, number: int) -> None:
        name = f"kwok-{number}"
        labels = {
            "kubernetes.io/hostname": name, "kubernetes.io/os": "linux",
            "topology.kubernetes.io/zone": f"zone-{number % 3}",
        }  # fmt: skip
        item = {
            "apiVersion": "v1",
            "kind": "Node",
            "metadata": {"name": name, "labels": labels},
            "status": {"allocatable": resources, "capacity": resources, "conditions": [ready], "addresses": [address]},
        }
        async with session.post(f"{SERVER}/api/v1/nodes", json=item) as answer:
            answer.raise_for_status()

    connector = aiohttp.TCPConnector(limit=16, ssl=tls)
    async with aiohttp.ClientSession(connector=connector) as session, asyncio.TaskGroup() as tasks:
        for number in range(count):
            tasks.create_task(make(session, number))


def _now() -> str:
    return f"{datetime.now(UTC):%Y-%m-%dT%H:%M:%SZ}"


@asynccontextmanager
async def _kwok(cluster: KubeCluster) -> AsyncIterator[Process]:
    """kwok, which plays the pods. Nodes have no leases, and nobody misses them in an hour (`patient`)."""
    await asyncio.to_thread(binaries.build, "kwok")
    words = [
        str(binaries.kwok()), "--config", str(binaries.SOURCE / "scale" / "stages.yaml"),
        "--kubeconfig", str(cluster.control.admin), "--manage-all-nodes",
        "--cidr=10.128.0.0/14", "--node-ip=10.99.0.1", "--node-lease-duration-seconds=0", "--v=ERROR",
    ]  # fmt: skip
    part = Process(
        cluster.lan.enter("control", "nice", "-n", "5", *words), name="kwok", log=cluster.base / "log" / "kwok.log"
    )
    part.start()
    try:
        yield part
    finally:
        await part.stop()


@asynccontextmanager
async def _tracker(cluster: KubeCluster, kubeconfig: Path) -> AsyncIterator[Process]:
    """The tracker, as the chart starts it, without keys: thousands of handshakes would be the agents' time."""
    flags = [
        f"--listen={network.address(network.CONTROL)}:{PORT}", "--discovery=kubernetes", "--namespace=shoal",
        f"--selector={SELECTOR}", f"--kubeconfig={kubeconfig}", "--log-format=json",
    ]  # fmt: skip
    words = cluster.lan.enter("control", *python("mirror", "tracker", *flags))
    part = Process(words, name="tracker", log=cluster.base / "log" / "tracker.log")
    part.start()
    try:
        await part.says(r"tracker\.started")
        yield part
    finally:
        await part.stop()


async def _rollout(cluster: KubeCluster, kwok: Process, crowd: Crowd, count: int, row: Row) -> None:
    """Install the chart's DaemonSet, and wait until every pod's agent is a member. Raises PartFailed if kwok ends."""
    values = cluster.base / "values.json"
    values.write_text(json.dumps(IMAGE_VALUES | {"containerd": {"install": False}, "tracker": {"replicas": 1}}))
    words = ["template", "shoal", str(ROOT / "charts/shoal"), "--namespace", "shoal", "-f", str(values)]
    rendered = await cluster.helm(
        *words, "-s", "templates/agent.yaml", "-s", "templates/priorityclass.yaml",
        "--kube-version", binaries.kubernetes_version())  # fmt: skip
    file = cluster.base / "agent.yaml"
    file.write_text(rendered)
    begun = time.monotonic()
    await cluster.kubectl("apply", "-n", "shoal", "-f", str(file))
    all_there = asyncio.create_task(crowd.until(count))
    over = asyncio.create_task(kwok.ended(deadline=WITHIN))
    try:
        await asyncio.wait({all_there, over}, return_when=asyncio.FIRST_COMPLETED)
        if not all_there.done():
            raise PartFailed(f"kwok ended, or {WITHIN:.0f} s were not enough:\n{kwok.output(10)}")
        done = all_there.result()
    finally:
        all_there.cancel()
        over.cancel()
    row["pods_made_s"] = round(crowd.last_ran - begun, 1)
    row["joined_after_last_pod_s"] = round(done - crowd.last_ran, 2)
    row["refused_while_joining"] = crowd.refused


async def _rest(tracker: Process, row: Row) -> None:
    """What it costs to have them all, while nothing happens."""
    before = tracker.cpu_seconds()
    await asyncio.sleep(REST)
    row["cpu_at_rest_percent"] = round(100 * (tracker.cpu_seconds() - before) / REST, 1)
    row["memory_at_rest_mib"] = round(psutil.Process(tracker.pid).memory_info().rss / MIB)


class _Received:
    """Bytes that a process has had from the API server, of its connections there. One that ends between two looks is
    counted up to the look before."""

    def __init__(self, cluster: KubeCluster, pid: int) -> None:
        self._words = cluster.lan.enter("control", "ss", "-tinpHO", "dport", "=", ":6443")
        self._owner = f"pid={pid},"
        self._seen: dict[str, int] = {}
        """Local address -> bytes."""

    async def look(self) -> int:
        """All so far."""
        for line in (await run(self._words)).splitlines():
            if self._owner in line and (found := re.search(r"bytes_received:(\d+)", line)) is not None:
                local = line.split()[3]
                self._seen[local] = max(self._seen.get(local, 0), int(found[1]))
        return sum(self._seen.values())

    async def follow(self) -> None:
        """Look every second, until cancelled."""
        while True:
            await self.look()
            await asyncio.sleep(1)


async def _restart(cluster: KubeCluster, tracker: Process, crowd: Crowd, count: int, row: Row) -> None:
    """Every pod is replaced, a tenth of them at a time."""
    received = _Received(cluster, tracker.pid)
    at_first, following = await received.look(), asyncio.create_task(received.follow())
    try:
        await _replace(cluster, tracker, crowd, count, row)
        row["restart_from_api_server_mib"] = round((await received.look() - at_first) / MIB, 1)
    finally:
        await ended(following)


async def _replace(cluster: KubeCluster, tracker: Process, crowd: Crowd, count: int, row: Row) -> None:
    begun, cpu, refused, old = time.monotonic(), tracker.cpu_seconds(), crowd.refused, crowd.pods()
    lag = await _lag()
    await cluster.kubectl("rollout", "restart", "daemonset/shoal-agent", "-n", "shoal")
    await cluster.kubectl(
        "rollout", "status", "daemonset/shoal-agent", "-n", "shoal", f"--timeout={WITHIN:.0f}s", deadline=WITHIN
    )
    async with asyncio.timeout(WITHIN):
        while crowd.pods() & old:
            await crowd.until(count)
            await asyncio.sleep(0.2)
        done = await crowd.until(count)
    row["restart_s"] = round(done - begun, 1)
    row["restart_cpu_s"] = round(tracker.cpu_seconds() - cpu, 1)
    row["restart_joined_after_last_pod_s"] = round(done - crowd.last_ran, 2)
    row["restart_refused"] = crowd.refused - refused
    after = await _lag()
    row["restart_loop_lag_up_to_s"] = max((bound for bound in after if after[bound] > lag.get(bound, 0)), default=0.0)


async def _lag() -> dict[float, float]:
    """How often the tracker's loop was late: upper bound in seconds -> times, of its own histogram."""
    url = f"http://{network.address(network.CONTROL)}:{PORT}/metrics"
    async with aiohttp.ClientSession() as session, session.get(url) as answer:
        text = await answer.text()
    found = re.findall(r'^shoal_tracker_loop_lag_seconds_bucket\{le="([^"]+)"\} (\S+)', text, re.MULTILINE)
    lags, below = {}, 0.0
    for bound, total in found:
        lags[float(bound)] = float(total) - below
        below = float(total)
    return lags


async def _begin_anew(tracker: Process, row: Row) -> None:
    """A tracker that starts where all pods run already: until it is ready."""
    await tracker.stop()
    begun = time.monotonic()
    tracker.start()
    url = f"http://{network.address(network.CONTROL)}:{PORT}/readyz"
    async with aiohttp.ClientSession() as session, asyncio.timeout(120):
        while True:
            try:
                async with session.get(url) as answer:
                    if answer.status == 200:
                        break
            except aiohttp.ClientError:
                pass
            await asyncio.sleep(0.05)
    row["ready_after_start_s"] = round(time.monotonic() - begun, 2)
    row["memory_after_start_mib"] = round(psutil.Process(tracker.pid).memory_info().rss / MIB)


def table(rows: list[Row]) -> str:
    """The rows as Markdown: one column for each size."""
    lines = ["| | " + " | ".join(f"{row['nodes']:,} nodes" for row in rows) + " |", "|---" * (len(rows) + 1) + "|"]
    keys = list(dict.fromkeys(key for row in rows for key in row if key != "nodes"))
    lines += [f"| {key} | " + " | ".join(str(row.get(key, "")) for row in rows) + " |" for key in keys]
    return "\n".join(lines)


def main() -> int:
    """Measure what the arguments name, and keep it in bench/results."""
    restart = "--without-restart" not in sys.argv
    counts = [int(word) for word in sys.argv[1:] if word.isdecimal()] or list(COUNTS)
    resource.setrlimit(resource.RLIMIT_NOFILE, (resource.getrlimit(resource.RLIMIT_NOFILE)[1],) * 2)
    rows: list[Row] = []
    try:
        for count in counts:
            rows.append(asyncio.run(measure(count, restart=restart)))
            print(json.dumps(rows[-1]), flush=True)
            _keep(rows)
    except (PartFailed, TimeoutError) as problem:
        print(f"{count} nodes: {type(problem).__name__}: {problem}", file=sys.stderr)
    if rows:
        print(table(rows))
        print(_place())
    return 0 if len(rows) == len(counts) else 1


def _keep(rows: list[Row]) -> None:
    """In the results of today, beside the sizes that another run of today measured."""
    file = _place() / "results.json"
    file.parent.mkdir(parents=True, exist_ok=True)
    known = json.loads(file.read_text())["rows"] if file.exists() else []
    new = {row["nodes"] for row in rows}
    all_rows = sorted([*rows, *(row for row in known if row["nodes"] not in new)], key=lambda row: int(row["nodes"]))
    told = facts({"counts": str(sorted(row["nodes"] for row in all_rows))}, [SHARED])
    file.write_text(json.dumps(told | {"rows": all_rows}, indent=1) + "\n")


def _place() -> Path:
    return ROOT / "bench" / "results" / f"{datetime.now(UTC):%Y-%m-%d}-cluster"


if __name__ == "__main__":
    sys.exit(main())
