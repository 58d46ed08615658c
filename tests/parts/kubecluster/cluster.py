"""The whole: a control plane, nodes, a counting registry, and the commands that a person has."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from tests.parts import data
from tests.parts.kubecluster import binaries, claims, images, network
from tests.parts.kubecluster.control import SERVER, ControlPlane
from tests.parts.kubecluster.network import Network
from tests.parts.kubecluster.node import Node
from tests.parts.kubecluster.pki import Authority
from tests.parts.kubecluster.registry import HOST, CountedRegistry
from tests.parts.procs import run
from tests.parts.registry import layer_tar

CHART = images.ROOT / "charts" / "shoal"
Object = dict[str, Any]

WATCHES = 1024
"""inotify instances of root that suffice for a cluster beside everything else on the machine. It stays raised."""

COMMANDS = ("containerd", "runc", "docker-registry", "podman", "debootstrap", "iptables", "ip", "conntrack")
"""What Debian gives (`.ci/tools` installs it)."""


BINARIES = "Kubernetes' binaries"
"""What `missing` calls them."""


def missing() -> list[str]:
    """What this machine lacks for a cluster; empty if it has everything."""
    lacks = [command for command in COMMANDS if shutil.which(command) is None]
    if not Path("/usr/lib/cni/bridge").exists():
        lacks.append("containernetworking-plugins")
    if os.geteuid() != 0:
        lacks.append("root's rights")
    if not binaries.built():
        lacks.append(BINARIES)
    return lacks


def enough_watches() -> None:
    """Raise what the kernel allows in inotify instances: three kubelets and containerds pass the default of 128.

    So does a whole test run: each HTTP client's resolver (c-ares) has one until it is collected.
    """
    allowed = Path("/proc/sys/fs/inotify/max_user_instances")
    if int(allowed.read_text()) < WATCHES:
        allowed.write_text(str(WATCHES))


class KubeCluster:
    """A running cluster; everything of it is under *base*, and is gone when its block is left."""

    def __init__(self, base: Path, prefix: str, *, patient: bool = False) -> None:
        self.base = base
        self.lan = Network(prefix)
        self.authority = Authority(base / "pki")
        self.control = ControlPlane(base, self.lan, self.authority, patient=patient)
        self.registry = CountedRegistry(base, self.lan, self.authority)
        self.nodes: list[Node] = []
        self._images: list[Path] = []

    async def up(self, *, nodes: int = 3) -> None:
        """Control plane, registry, and *nodes* nodes that are Ready. Without nodes: the control plane alone."""
        await asyncio.to_thread(enough_watches)
        await self.lan.up()
        hosts = {HOST: network.address(network.REGISTRY)}
        if not nodes:
            await self.control.up(hosts)
            return
        pause = await asyncio.to_thread(images.pause_image, self.base)
        self._images = [pause, await images.shoal_image()]
        await asyncio.gather(self.registry.up(), self.control.up(hosts))
        await self.kubectl(
            "create", "clusterrolebinding", "kube-proxy", "--clusterrole=system:node-proxier",
            "--user=system:kube-proxy",
        )  # fmt: skip
        await asyncio.gather(*(self.add_node() for _ in range(nodes)))
        for node in self.nodes:
            await self.kubectl("wait", "node", node.name, "--for=create", "--timeout=120s")
        await self.kubectl("wait", "node", "--all", "--for=condition=Ready", "--timeout=120s")

    async def down(self) -> None:
        """End everything. A second call does nothing."""
        # At once: a node waits for the disk, since each of its containers' file systems is written out at its end.
        try:
            await asyncio.gather(*(node.down() for node in self.nodes), self.control.down(), self.registry.down())
        finally:
            self.nodes.clear()
            await self.lan.down()

    async def add_node(self) -> Node:
        """One more node, in a zone by turns. It is there when this returns; Ready a few seconds later."""
        number = network.FIRST_NODE + len(self.nodes)
        zone = "north" if len(self.nodes) % 2 == 0 else "south"
        node = Node(self.base, self.lan, self.authority, number, zone=zone)
        self.nodes.append(node)
        await node.up(SERVER, network.address(network.CONTROL), self._images)
        return node

    async def kubectl(self, *words: str, deadline: float = 150.0) -> str:
        """Output of kubectl as the cluster's administrator. Raises PartFailed if it fails."""
        command = [str(binaries.directory() / "kubectl"), "--kubeconfig", str(self.control.admin), *words]
        return await run(self.lan.enter("control", *command), deadline=deadline)

    async def kubectl_warnings(self, *words: str) -> str:
        """What kubectl prints on its standard error, where the API server's warnings go."""
        command = [str(binaries.directory() / "kubectl"), "--kubeconfig", str(self.control.admin), *words]
        shell = ["sh", "-c", 'exec "$@" 2>&1 >/dev/null', "sh", *self.lan.enter("control", *command)]
        return await run(shell)

    async def helm(self, *words: str, deadline: float = 300.0) -> str:
        """Output of helm as the cluster's administrator."""
        command = [str(binaries.directory() / "helm"), "--kubeconfig", str(self.control.admin), *words]
        homes = {name: str(self.base / "helm") for name in ("HELM_CACHE_HOME", "HELM_CONFIG_HOME", "HELM_DATA_HOME")}
        return await run(self.lan.enter("control", *command), deadline=deadline, env=homes)

    async def get(self, *words: str) -> list[Object]:
        """The objects that `kubectl get` finds."""
        found = json.loads(await self.kubectl("get", *words, "-o", "json"))
        items: list[Object] = found.get("items", [found])
        return items

    async def apply(self, *objects: Object) -> None:
        """Create or change objects."""
        file = self.base / "apply.json"
        file.write_text(json.dumps({"apiVersion": "v1", "kind": "List", "items": list(objects)}))
        await self.kubectl("apply", "-f", str(file))

    async def ask(self, namespace: str, pod: str, port: int, path: str) -> str:
        """What a pod answers at a path, by way of the API server."""
        return await self.kubectl("get", "--raw", f"/api/v1/namespaces/{namespace}/pods/{pod}:{port}/proxy{path}")

    def push_workload(self, repository: str, tag: str, layers: int, size: int, seed: int) -> int:
        """An image that runs and does nothing, with *layers* layers of *size* bytes that no compression makes
        smaller. Bytes of one copy."""
        # Not the layer of the pause image: containerd would have it already, and not fetch it.
        program = layer_tar({"app": (binaries.directory() / "pause").read_bytes()}, mode=0o755)
        filling = [layer_tar({f"layer-{index}": data.blob(size, seed * 100 + index)}) for index in range(layers)]
        return self.registry.push(repository, tag, [program, *filling], {"Entrypoint": ["/app"]})


@asynccontextmanager
async def kube_cluster(
    *, nodes: int = 3, prefix: str | None = None, patient: bool = False
) -> AsyncIterator[KubeCluster]:
    """A cluster whose nodes are Ready. *patient*: a node may be silent for an hour. What killed runs left is taken
    away first."""
    await asyncio.to_thread(claims.sweep)
    name = prefix or f"shk{os.getpid()}"
    base = Path(tempfile.mkdtemp(prefix=claims.BASE))
    with claims.claim(name, base):
        cluster = KubeCluster(base, name, patient=patient)
        try:
            await cluster.up(nodes=nodes)
            yield cluster
        finally:
            await cluster.down()
            if os.environ.get("SHOAL_CLUSTER_KEEP_LOGS") is None:
                await asyncio.to_thread(shutil.rmtree, base, ignore_errors=True)
