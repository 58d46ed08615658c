"""`python -m tests.parts.kubecluster up|down`: a cluster for a person, with the chart installed and an image pulled.

`up` starts a process that holds the cluster, and returns when everything runs; `down` ends it. What it leaves behind
is the cache of binaries and images.
"""

from __future__ import annotations

import asyncio
import os
import select
import signal
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

from tests.parts.kubecluster import binaries, images, network
from tests.parts.kubecluster.cluster import KubeCluster, kube_cluster, missing
from tests.parts.kubecluster.shoal import IMAGE_VALUES, Release, private_registry
from tests.parts.kubecluster.workload import daemon_set
from tests.parts.procs import ready

HELD = "the cluster is up"
"""The line after which `up` returns."""

MIB = 1024 * 1024
DOWN_WITHIN = 120


def pid_file() -> Path:
    """Where the holder's process id is."""
    return binaries.cache() / "cluster.pid"


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
        print(f"there is one already (process {pid}): make cluster-down")
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


def down() -> int:
    """End the holder, and wait until it has cleaned up. Exit code."""
    pid = holder()
    if pid is None:
        print("there is no cluster")
        return 0
    handle = os.pidfd_open(pid)
    os.kill(pid, signal.SIGTERM)
    if not ready(handle, select.POLLIN, DOWN_WITHIN):
        print(f"process {pid} does not end: kill -9 {pid}", file=sys.stderr)
        return 1
    pid_file().unlink(missing_ok=True)
    return 0


async def hold() -> None:
    """Bring the cluster up, say how to use it, and keep it until SIGTERM."""
    stopped = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stopped.set)
    pid_file().parent.mkdir(parents=True, exist_ok=True)
    pid_file().write_text(str(os.getpid()))
    try:
        async with kube_cluster(prefix="shoal") as cluster:
            work = asyncio.create_task(_use(cluster))
            stop = asyncio.create_task(stopped.wait())
            await asyncio.wait({work, stop}, return_when=asyncio.FIRST_COMPLETED)
            if work.done():
                work.result()
                with suppress(BrokenPipeError):
                    print(HELD, flush=True)
                await stop
            else:
                work.cancel()
    finally:
        pid_file().unlink(missing_ok=True)


async def _use(cluster: KubeCluster) -> None:
    """Install the chart, pull an image on every node, and say what came out."""
    await cluster.lan.uplink()
    print(await cluster.kubectl("get", "nodes", "-o", "wide"))
    release = Release(cluster)
    await release.install(IMAGE_VALUES)
    await release.upgrade(IMAGE_VALUES, await private_registry(cluster))
    one_copy = await asyncio.to_thread(cluster.push_workload, "demo/app", "v1", 4, 25 * MIB, 1)
    await cluster.apply(daemon_set("demo", "registry.test/demo/app:v1"))
    await cluster.kubectl("rollout", "status", "daemonset/demo", "--timeout=180s")
    sent = cluster.registry.blob_bytes("demo/app")
    print(await cluster.kubectl("get", "pods", "-A", "-o", "wide"))
    print(f"pulled on {len(cluster.nodes)} nodes: the registry sent {sent / one_copy:.2f} copies")
    command = f"KUBECONFIG={cluster.control.admin} {binaries.directory()}/kubectl"
    print(f"kubectl: {command} get pods -A")
    print(f"page:    {command} -n shoal port-forward deployment/shoal-tracker 6970, then http://127.0.0.1:6970/")
    print(f"logs:    {cluster.base}/log    registry: https://{network.address(network.REGISTRY)}/ (registry.test)")
    print("down:    make cluster-down")


def main() -> int:
    """Exit code."""
    match sys.argv[1:]:
        case ["up"]:
            return up()
        case ["down"]:
            return down()
        case ["hold"]:
            asyncio.run(hold())
            return 0
        case _:
            print("usage: python -m tests.parts.kubecluster up|down", file=sys.stderr)
            return 2


if __name__ == "__main__":
    sys.exit(main())
