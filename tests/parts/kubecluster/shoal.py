"""Shoal on a cluster: the release that helm installs, and what its pods say."""

from __future__ import annotations

import asyncio
import json
from contextlib import suppress
from pathlib import Path
from typing import Any

import yaml

from tests.parts.kubecluster import images
from tests.parts.kubecluster.cluster import CHART, KubeCluster
from tests.parts.kubecluster.registry import HOST
from tests.parts.procs import PartFailed

Object = dict[str, Any]

_repository, _tag = images.NAME.rsplit(":", 1)
IMAGE_VALUES: Object = {"image": {"repository": _repository, "tag": _tag}}
"""The least that has to be said: where Shoal's image is. It is in the nodes' containerd already."""


async def private_registry(cluster: KubeCluster) -> Object:
    """Values by which the agents trust the registry's certificate, as for a company's registry; makes the ConfigMap."""
    authority = cluster.authority.certificate.read_text()
    await cluster.apply(
        {
            "apiVersion": "v1",
            "kind": "ConfigMap",
            "metadata": {"name": "registry-ca", "namespace": "shoal"},
            "data": {"ca.crt": authority},
        }
    )
    return {
        "agent": {
            "settings": {"registryCerts": "/etc/shoal/certs"},
            "extraVolumes": [{"name": "ca", "configMap": {"name": "registry-ca"}}],
            "extraVolumeMounts": [{"name": "ca", "mountPath": f"/etc/shoal/certs/{HOST}", "readOnly": True}],
        }
    }


class Release:
    """The release `shoal` in the namespace `shoal`."""

    def __init__(self, cluster: KubeCluster, name: str = "shoal", namespace: str = "shoal") -> None:
        self.cluster = cluster
        self.name = name
        self.namespace = namespace

    async def install(self, *values: Object) -> str:
        """`helm install --wait`; what helm says (the notes)."""
        return await self._helm("install", "--create-namespace", "--wait", "--timeout=240s", values=values)

    async def present(self, *values: Object) -> None:
        """Install it, unless it is there: a test that is run alone begins where the one before it would have ended."""
        known = await self.cluster.helm("list", "--namespace", self.namespace, "--short", "--all")
        if self.name not in known.split():
            await self.install(*values)

    async def upgrade(self, *values: Object, wait: bool = True) -> str:
        """`helm upgrade`, with `--wait` unless told otherwise."""
        flags = ("--wait", "--timeout=240s") if wait else ()
        return await self._helm("upgrade", *flags, values=values)

    async def rollback(self) -> str:
        """`helm rollback --wait` to the revision before."""
        words = ["rollback", self.name, "--namespace", self.namespace, "--wait", "--timeout=240s"]
        return await self.cluster.helm(*words)

    async def test(self) -> str:
        """`helm test`. Raises PartFailed if it fails."""
        return await self.cluster.helm("test", self.name, "--namespace", self.namespace, "--timeout=180s")

    async def uninstall(self) -> str:
        """`helm uninstall --wait`."""
        return await self.cluster.helm(
            "uninstall", self.name, "--namespace", self.namespace, "--wait", "--timeout=240s"
        )

    async def pods(self, part: str) -> list[Object]:
        """The pods of `agent` or `tracker`."""
        labels = f"app.kubernetes.io/instance={self.name},app.kubernetes.io/component={part}"
        return await self.cluster.get("pods", "-n", self.namespace, "-l", labels)

    async def members(self) -> set[str]:
        """Names of the nodes whose agents say that a tracker has taken them as a member."""
        told = []
        for pod in await self.pods("agent"):
            with suppress(PartFailed):  # an agent that is just starting, or going
                text = await self.cluster.ask(self.namespace, pod["metadata"]["name"], 5004, "/status")
                told.append(json.loads(text))
        return {status["name"] for status in told if status["member"]}

    async def joined(self, nodes: set[str], *, deadline: float = 60.0) -> None:
        """Until exactly the agents of *nodes* are members. Raises TimeoutError with who is at the deadline."""
        last: object = None
        try:
            async with asyncio.timeout(deadline):
                while (last := await self.members()) != nodes:  # noqa: ASYNC110 - a page has no event for us
                    await asyncio.sleep(0.5)
        except TimeoutError:
            raise TimeoutError(f"members are {last}, not {nodes}") from None

    async def rolled_out(self) -> None:
        """Until every pod of the newest revision of agents and trackers is ready."""
        for workload in (f"daemonset/{self.name}-agent", f"deployment/{self.name}-tracker"):
            words = ["rollout", "status", workload, "-n", self.namespace, "--timeout=240s"]
            await self.cluster.kubectl(*words, deadline=260)

    async def _helm(self, verb: str, *flags: str, values: tuple[Object, ...]) -> str:
        files = []
        for index, given in enumerate(values):
            file: Path = self.cluster.base / f"values-{index}.yaml"
            file.write_text(yaml.safe_dump(given))
            files += ["-f", str(file)]
        words = [verb, self.name, str(CHART), "--namespace", self.namespace, *flags, *files]
        return await self.cluster.helm(*words, deadline=300)


def ready(pod: Object) -> bool:
    """Whether the pod's condition Ready is true."""
    conditions = pod.get("status", {}).get("conditions", [])
    return any(entry["type"] == "Ready" and entry["status"] == "True" for entry in conditions)
