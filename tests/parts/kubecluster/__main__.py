"""`python -m tests.parts.kubecluster up|down`: a cluster for a person, with the chart installed and an image pulled.

`up` starts a process that holds the cluster, and returns when everything runs; `down` ends it. What it leaves behind
is the cache of binaries and images.
"""

from __future__ import annotations

import asyncio
import os
import select
import signal
import socket
import subprocess
import sys
from contextlib import AsyncExitStack, suppress
from pathlib import Path

import aiohttp

from tests.parts.kubecluster import binaries, claims, images, network
from tests.parts.kubecluster.cluster import KubeCluster, kube_cluster, missing
from tests.parts.kubecluster.shoal import IMAGE_VALUES, Release, private_registry
from tests.parts.kubecluster.workload import daemon_set
from tests.parts.procs import PartFailed, Process, free_port, ready

HELD = "the cluster is up"
"""The line after which `up` returns."""

MIB = 1024 * 1024
DOWN_WITHIN = 120


PAGE = 6970
"""Where the tracker's page is, in its pod; on this machine, too, if that port is free."""


def pid_file() -> Path:
    """Where the holder's process id is."""
    return binaries.cache() / "cluster.pid"


def told_file() -> Path:
    """Where it says how to use the cluster that is up."""
    return binaries.cache() / "cluster.txt"


def holder() -> int | None:
    """The process that holds a cluster; None if there is none."""
    with suppress(OSError, ValueError):
        pid = int(pid_file().read_text())
        if "kubecluster" in Path(f"/proc/{pid}/cmdline").read_text():
            return pid
    return None


def up() -> int:
    """Start a holder, and pass on what it says until the cluster is up. Exit code."""
    lacks = missing()
    if lacks:
        print(f"this machine lacks {', '.join(lacks)}", file=sys.stderr)
        return 1
    if (pid := holder()) is not None:
        return _there(pid)
    _swept()
    if why := asyncio.run(network.obstacle()):
        print(why, file=sys.stderr)
        return 1
    words = [sys.executable, "-m", "tests.parts.kubecluster", "hold"]
    child = subprocess.Popen(
        words, cwd=images.ROOT, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True, start_new_session=True
    )
    assert child.stdout is not None
    for line in child.stdout:
        print(line, end="", flush=True)
        if line.startswith(HELD):
            return 0
    return child.wait() or 1


def _there(pid: int) -> int:
    """Say that process *pid* has a cluster, and how to use it. Exit code."""
    try:
        told = told_file().read_text()
    except OSError:
        print(f"process {pid} is bringing one up: wait for it, or make cluster-down", file=sys.stderr)
        return 1
    print(f"{HELD} already (process {pid})\n{told}", end="")
    return 0


def _swept() -> None:
    """Take away what a killed cluster left, and say so."""
    for prefix in claims.sweep():
        print(f"taken away: what a killed process left of its cluster {prefix}")


def down() -> int:
    """End the holder, and wait until it has cleaned up. Exit code."""
    if os.geteuid() != 0:
        print("this needs root's rights", file=sys.stderr)
        return 1
    pid = holder()
    if pid is None:
        _swept()
        for file in (pid_file(), told_file()):
            file.unlink(missing_ok=True)
        print("there is no cluster")
        return 0
    handle = os.pidfd_open(pid)
    os.kill(pid, signal.SIGTERM)
    if not ready(handle, select.POLLIN, DOWN_WITHIN):
        print(f"process {pid} does not end: kill -9 {pid}, and once more make cluster-down", file=sys.stderr)
        return 1
    pid_file().unlink(missing_ok=True)
    return 0


async def hold() -> None:
    """Bring the cluster up, say how to use it, and keep it until SIGTERM. Raises PartFailed, TimeoutError."""
    stopped = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stopped.set)
    pid_file().parent.mkdir(parents=True, exist_ok=True)
    told_file().unlink(missing_ok=True)
    pid_file().write_text(str(os.getpid()))
    try:
        async with kube_cluster(prefix="shoal") as cluster, AsyncExitStack() as kept:
            work = asyncio.create_task(_use(cluster, kept))
            stop = asyncio.create_task(stopped.wait())
            await asyncio.wait({work, stop}, return_when=asyncio.FIRST_COMPLETED)
            if work.done():
                told = work.result()
                await asyncio.to_thread(told_file().write_text, told)
                with suppress(BrokenPipeError):
                    print(f"{told}{HELD}", flush=True)
                await stop
            else:
                work.cancel()
                await asyncio.wait({work})
    finally:
        told_file().unlink(missing_ok=True)
        pid_file().unlink(missing_ok=True)


async def _use(cluster: KubeCluster, kept: AsyncExitStack) -> str:
    """Install the chart, pull an image on every node, and print what came out. How to use it, a line for each thing.
    *kept* ends what runs for that."""
    await cluster.lan.uplink()
    print(await cluster.kubectl("get", "nodes", "-o", "wide"))
    release = Release(cluster)
    await release.install(IMAGE_VALUES)
    await release.upgrade(IMAGE_VALUES, await private_registry(cluster))
    await release.rolled_out()
    await release.joined({node.name for node in cluster.nodes})
    one_copy = await asyncio.to_thread(cluster.push_workload, "demo/app", "v1", 4, 25 * MIB, 1)
    await cluster.apply(daemon_set("demo", "registry.test/demo/app:v1"))
    await cluster.kubectl("rollout", "status", "daemonset/demo", "--timeout=180s")
    sent = cluster.registry.blob_bytes("demo/app")
    print(await cluster.kubectl("get", "pods", "-A", "-o", "wide"))
    print(f"pulled on {len(cluster.nodes)} nodes: the registry sent {sent / one_copy:.2f} copies", flush=True)
    page = await _page(cluster, kept)
    command = f"KUBECONFIG={cluster.control.admin} {binaries.directory()}/kubectl"
    return (
        f"kubectl: {command} get pods -A\n"
        f"page:    {page}\n"
        f"logs:    {cluster.base}/log    registry: https://{network.address(network.REGISTRY)}/ (registry.test)\n"
        "down:    make cluster-down\n"
    )


async def _page(cluster: KubeCluster, kept: AsyncExitStack) -> str:
    """The page's address on this machine, once it answers there. *kept* ends the forwarding."""
    command = [str(binaries.directory() / "kubectl"), "--kubeconfig", str(cluster.control.admin), "-n", "shoal"]
    words = [*command, "port-forward", "deployment/shoal-tracker", f"{_port()}:{PAGE}"]
    part = Process(words, name="page", log=cluster.base / "log" / "page.log")
    kept.push_async_callback(part.stop)
    part.start()
    port = (await part.says(r"Forwarding from 127\.0\.0\.1:(\d+)"))[1]
    url = f"http://127.0.0.1:{port}/"
    async with aiohttp.ClientSession() as session, session.get(url) as answer:
        if answer.status != 200:
            raise PartFailed(f"{url} answers {answer.status}")
    return url


def _port() -> int:
    """PAGE, or a free one."""
    with socket.socket() as probe:
        try:
            probe.bind(("127.0.0.1", PAGE))
        except OSError:
            return free_port()
    return PAGE


def main() -> int:
    """Exit code."""
    match sys.argv[1:]:
        case ["up"]:
            return up()
        case ["down"]:
            return down()
        case ["hold"]:
            try:
                asyncio.run(hold())
            except (PartFailed, TimeoutError, OSError) as problem:
                print(f"no cluster: {problem}", flush=True)
                return 1
            return 0
        case _:
            print("usage: python -m tests.parts.kubecluster up|down", file=sys.stderr)
            return 2


if __name__ == "__main__":
    sys.exit(main())
